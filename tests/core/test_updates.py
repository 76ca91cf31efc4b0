from __future__ import annotations

from typing import Any

import pytest
import slow_reference as slow
import torch
from torch import Tensor

from creditgrid.core.network import ResidualMLP
from creditgrid.core.streams import generator
from creditgrid.core.updates import local_direction, normalise_credit, update_blocks

L, D, WIDTH, C, B = 3, 12, 6, 5, 4
Y = torch.tensor([0, 4, 2, 2])


def _draw(*shape: int, index: int = 2) -> Tensor:
    return torch.randn(shape, generator=generator(index, "test"), dtype=torch.float64)


def _network(residual_add: bool = True) -> ResidualMLP:
    network = ResidualMLP(D, WIDTH, C, L, residual_add, 0.3, generator=generator(0, "test")).double()
    source = generator(1, "test")
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=source, dtype=torch.float64), alpha=0.3)
    return network


@pytest.mark.parametrize(
    ("update_range", "num_blocks", "blocks"),
    [
        ("last1", 4, [3]),
        ("last2", 4, [2, 3]),
        ("all", 4, [0, 1, 2, 3]),
        ("last1", 1, [0]),
        ("last2", 1, [0]),
        ("last2", 2, [0, 1]),
    ],
)
def test_update_blocks(update_range: Any, num_blocks: int, blocks: list[int]) -> None:
    assert list(update_blocks(update_range, num_blocks)) == blocks


def test_normalised_credits_have_rms_one_unless_they_vanish() -> None:
    credit = _draw(2, 3, 8) * torch.tensor([1e-3, 1.0, 1e4], dtype=torch.float64)[:, None]
    credit[1, 2] = 0
    normalised = normalise_credit(credit)
    for layer in range(2):
        for i in range(3):
            torch.testing.assert_close(normalised[layer, i], credit[layer, i] / slow.rms(credit[layer, i]))
    assert torch.equal(normalised[1, 2], torch.zeros(8, dtype=torch.float64))


@pytest.mark.parametrize("residual_add", [True, False])
@pytest.mark.parametrize(
    ("blocks", "update_head"),
    [([2], False), ([2], True), ([1, 2], False), ([1, 2], True), ([0, 1, 2], False), ([0, 1, 2], True), ([], True)],
)
def test_directions_against_one_sample_at_a_time(residual_add: bool, blocks: list[int], update_head: bool) -> None:
    network, x, credits = _network(residual_add), _draw(B, D), _draw(L, B, WIDTH, index=3)
    _, hiddens = network(x, return_hidden=True)

    found = local_direction(network, hiddens, credits, Y, blocks, update_head=update_head)

    reference = slow.SlowNetwork(slow.parameters_of(network), residual_add)
    expected = slow.local_gradients(reference, x, Y.tolist(), credits, blocks, update_head=update_head)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("frozen", [True, False])
def test_the_network_is_left_as_it_was(frozen: bool) -> None:
    network = _network().requires_grad_(not frozen)
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    with torch.no_grad():  # directions are wanted by callers that run everything else without a graph
        _, hiddens = network(_draw(B, D), return_hidden=True)
        direction = local_direction(network, hiddens, _draw(L, B, WIDTH, index=3), Y, [1, 2], update_head=True)
    assert not any(gradient.requires_grad for gradient in direction.values())
    for name, parameter in network.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None
        assert parameter.requires_grad is not frozen


def test_an_unknown_rule_is_refused() -> None:
    network = _network()
    _, hiddens = network(_draw(B, D), return_hidden=True)
    with pytest.raises(KeyError, match="nonsense"):
        local_direction(network, hiddens, _draw(L, B, WIDTH), Y, [2], update_head=False, rule="nonsense")
