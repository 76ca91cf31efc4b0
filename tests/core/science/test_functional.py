"""The network as a function of its parameters, against the module and against one sample at a time."""

from __future__ import annotations

import pytest
import slow_reference as slow
import torch
from torch import Tensor

from creditgrid.core.science.functional import FunctionalMLP
from creditgrid.core.science.network import ResidualMLP
from creditgrid.core.science.random_streams import generator

L, D, WIDTH, C, B, S = 3, 12, 6, 5, 4, 3


def _draw(*shape: int, index: int = 2) -> Tensor:
    return torch.randn(shape, generator=generator(index, "test"), dtype=torch.float64)


def _network(index: int = 0, residual_add: bool = True) -> ResidualMLP:
    network = ResidualMLP(D, WIDTH, C, L, residual_add, 0.3, generator=generator(index, "test")).double()
    draws = generator(index, "perturbed")
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draws, dtype=torch.float64), alpha=0.3)
    return network.requires_grad_(False)


def _stack(networks: list[ResidualMLP]) -> FunctionalMLP:
    states = [network.state_dict() for network in networks]
    stacked = {name: torch.stack([state[name] for state in states]) for name in states[0]}
    return FunctionalMLP(stacked.__getitem__, L, networks[0].residual_add)


@pytest.mark.parametrize("residual_add", [True, False])
def test_one_network_against_one_sample_at_a_time(residual_add: bool) -> None:
    network, x = _network(residual_add=residual_add), _draw(B, D)
    functional = FunctionalMLP(network.get_parameter, L, residual_add)
    reference = slow.SlowNetwork(slow.parameters_of(network), residual_add)
    hiddens = functional.hiddens(network.embed(x))
    assert len(hiddens) == L + 1
    for i in range(B):
        for layer, expected in enumerate(reference.hiddens(x[i])):
            torch.testing.assert_close(hiddens[layer][i], expected.detach(), rtol=1e-10, atol=1e-12)
        logits = functional.head(hiddens[-1])[i]
        torch.testing.assert_close(logits, reference.logits(x[i]).detach(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("residual_add", [True, False])
def test_one_network_is_the_module_to_the_last_bit(residual_add: bool) -> None:
    network, x = _network(residual_add=residual_add).float(), _draw(B, D).float()
    functional = FunctionalMLP(network.get_parameter, L, residual_add)
    logits, hiddens = network(x, return_hidden=True)
    for found, expected in zip(functional.hiddens(network.embed(x)), hiddens, strict=True):
        assert torch.equal(found, expected)
    assert torch.equal(functional.head(hiddens[-1]), logits)
    for layer in range(L):
        assert torch.equal(functional.branch(layer, hiddens[layer]), network.branch(layer, hiddens[layer]))
        assert torch.equal(functional.next(layer, hiddens[layer]), hiddens[layer + 1])


@pytest.mark.parametrize("residual_add", [True, False])
@pytest.mark.parametrize("shared", [True, False])
def test_networks_side_by_side_are_the_same_as_one_by_one(residual_add: bool, shared: bool) -> None:
    networks = [_network(index, residual_add) for index in range(S)]
    together, h = _stack(networks), _draw(B, WIDTH) if shared else _draw(S, B, WIDTH)
    for layer in range(L):
        for found, method in ((together.branch(layer, h), "branch"), (together.next(layer, h), "next")):
            assert found.shape == (S, B, WIDTH)
            for i, network in enumerate(networks):
                own = h if shared else h[i]
                branch = network.branch(layer, own)
                expected = own + branch if method == "next" and residual_add else branch
                torch.testing.assert_close(found[i], expected, rtol=1e-10, atol=1e-12)
    hiddens, logits = together.hiddens(h), together.head(h)
    assert logits.shape == (S, B, C)
    for i, network in enumerate(networks):
        own = h if shared else h[i]
        torch.testing.assert_close(logits[i], network.head(own), rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(
            together.head(hiddens[-1])[i], network.forward_from_layer(own, 0), rtol=1e-10, atol=1e-12
        )


@pytest.mark.parametrize("first", range(L + 1))
def test_hidden_states_from_a_layer_on(first: int) -> None:
    networks = [_network(index) for index in range(S)]
    together, h = _stack(networks), _draw(S, B, WIDTH)
    hiddens = together.hiddens(h, first)
    assert len(hiddens) == L + 1 - first
    logits = together.head(hiddens[-1])
    for i, network in enumerate(networks):
        torch.testing.assert_close(logits[i], network.forward_from_layer(h[i], first), rtol=1e-10, atol=1e-12)


def test_a_part_of_the_stack_is_those_networks() -> None:
    networks, h = [_network(index) for index in range(S)], _draw(S, B, WIDTH)
    together = _stack(networks)
    whole = together.head(together.hiddens(h)[-1])
    for part in (slice(0, 1), slice(1, 3), slice(0, S)):
        some = together.part(part)
        torch.testing.assert_close(some.head(some.hiddens(h[part])[-1]), whole[part], rtol=1e-10, atol=1e-12)


def test_a_stack_differentiates_to_each_network_s_own_gradient() -> None:
    networks, h = [_network(index) for index in range(S)], _draw(S, B, WIDTH)
    leaf = h.clone().requires_grad_()
    together = _stack(networks)
    (found,) = torch.autograd.grad(together.head(together.hiddens(leaf)[-1]).square().sum(), leaf)
    for i, network in enumerate(networks):
        own = h[i].clone().requires_grad_()
        (expected,) = torch.autograd.grad(network.forward_from_layer(own, 0).square().sum(), own)
        torch.testing.assert_close(found[i], expected, rtol=1e-9, atol=1e-12)


def test_only_the_parameters_in_use_are_asked_for() -> None:
    network, asked = _network(), []

    def parameter(name: str) -> Tensor:
        asked.append(name)
        return network.get_parameter(name)

    functional = FunctionalMLP(parameter, L, residual_add=True)
    functional.branch(1, _draw(B, WIDTH))
    assert {name.rsplit(".", 2)[0] for name in asked} == {"blocks.1"}
    asked.clear()
    functional.head(_draw(B, WIDTH))
    assert set(asked) == {"out_ln.weight", "out_ln.bias", "out_head.weight", "out_head.bias"}
