from __future__ import annotations

import math
from typing import Any

import pytest
import slow_reference as slow
import torch
from credit_kit import source
from torch import Tensor

from creditgrid.core.science.credit import (
    feedback_matrices,
    layer_times,
    output_error,
    terminal_gradient,
)
from creditgrid.core.science.estimators import EstimatorNet
from creditgrid.core.science.functional import FunctionalMLP
from creditgrid.core.science.network import ResidualMLP
from creditgrid.core.science.random_streams import generator

L, D, WIDTH, C, B = 3, 12, 6, 5, 4
Y = torch.tensor([0, 4, 2, 2])


def _draw(*shape: int, index: int = 2) -> Tensor:
    return torch.randn(shape, generator=generator(index, "test"), dtype=torch.float64)


def _randomise(module: torch.nn.Module, scale: float) -> None:
    draws = generator(1, "test")
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draws, dtype=torch.float64), alpha=scale)


def _network(residual_add: bool = True) -> ResidualMLP:
    network = ResidualMLP(D, WIDTH, C, L, residual_add, 0.3, generator=generator(0, "test")).double()
    _randomise(network, 0.3)
    return network.requires_grad_(False)


def _estimator(out_dim: int, s_dim: int) -> EstimatorNet:
    estimator = EstimatorNet(WIDTH, s_dim, out_dim, generator=generator(0, "test")).double()
    _randomise(estimator, 0.1)
    return estimator.requires_grad_(False)


def _credits(method: str, network: ResidualMLP, x: Tensor, first: int = 0, **options: Any) -> Tensor:
    with torch.no_grad():
        logits, hiddens = network(x, return_hidden=True)
    return source(method, **options).credits(network, hiddens, logits, Y, first)


def _expected(method: str, network: ResidualMLP, x: Tensor, **options: Any) -> Tensor:
    reference = slow.SlowNetwork(slow.parameters_of(network), network.residual_add)
    return torch.stack(
        [
            torch.stack([slow.credit(method, reference, x[i], int(Y[i]), layer, **options) for i in range(B)])
            for layer in range(L)
        ]
    )


@pytest.mark.parametrize("residual_add", [True, False])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_oracle_bp_against_one_sample_at_a_time(residual_add: bool, reduction: Any) -> None:
    network, x = _network(residual_add), _draw(B, D)
    found = _credits("oracle_bp", network, x, oracle_reduction=reduction)
    expected = _expected("oracle_bp", network, x) / (B if reduction == "mean" else 1)
    assert found.shape == (L, B, WIDTH)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_oracle_bp_against_finite_differences() -> None:
    network, x, eps = _network(), _draw(B, D), 1e-6
    found = _credits("oracle_bp", network, x)
    reference = slow.SlowNetwork(slow.parameters_of(network))
    for layer in range(L):
        for j in range(WIDTH):
            shift = torch.zeros(WIDTH, dtype=torch.float64)
            shift[j] = eps
            h = reference.hiddens(x[1])[layer].detach()
            ahead = slow.cross_entropy(reference.from_layer(h + shift, layer), int(Y[1]))
            behind = slow.cross_entropy(reference.from_layer(h - shift, layer), int(Y[1]))
            assert found[layer, 1, j].item() == pytest.approx(
                (ahead - behind).item() / (2 * eps) / B, rel=1e-6, abs=1e-9
            )


def test_dfa_against_one_sample_at_a_time() -> None:
    network, x = _network(), _draw(B, D)
    feedback = feedback_matrices(7, L, WIDTH, C).double()
    found = _credits("dfa", network, x, feedback=feedback)
    torch.testing.assert_close(found, _expected("dfa", network, x, feedback=feedback), rtol=1e-10, atol=1e-12)


def test_vec_against_one_sample_at_a_time() -> None:
    network, x, estimator = _network(), _draw(B, D), _estimator(WIDTH, C)
    found = _credits("vec", network, x, estimator=estimator)
    expected = _expected("vec", network, x, estimator=slow.parameters_of(estimator))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("s_source", "s_dim"), [("e_T", C), ("delta_L", WIDTH)])
def test_scalar_cb_against_one_sample_at_a_time(s_source: Any, s_dim: int) -> None:
    network, x, estimator = _network(), _draw(B, D), _estimator(1, s_dim)
    found = _credits("scalar_cb", network, x, estimator=estimator, s_source=s_source)
    expected = _expected("scalar_cb", network, x, estimator=slow.parameters_of(estimator), s_source=s_source)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("residual_add", [True, False])
def test_state_bridge_against_one_sample_at_a_time(residual_add: bool) -> None:
    network, x, estimator = _network(residual_add), _draw(B, D), _estimator(WIDTH, C)
    found = _credits("state_bridge", network, x, estimator=estimator)
    expected = _expected("state_bridge", network, x, estimator=slow.parameters_of(estimator))
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("s_source", ["e_T", "delta_L"])
def test_scalar_cb_holds_in_float32(s_source: Any) -> None:
    network, x, estimator = _network(), _draw(B, D), _estimator(1, C if s_source == "e_T" else WIDTH)
    expected = _credits("scalar_cb", network, x, estimator=estimator, s_source=s_source)
    found = _credits("scalar_cb", network.float(), x.float(), estimator=estimator.float(), s_source=s_source)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["oracle_bp", "dfa", "vec", "scalar_cb", "state_bridge"])
def test_credits_carry_no_graph_and_leave_everything_as_it_was(method: Any) -> None:
    network, x = _network().requires_grad_(True), _draw(B, D)
    estimator = _estimator(1 if method == "scalar_cb" else WIDTH, C).requires_grad_(True)
    logits, hiddens = network(x, return_hidden=True)
    feedback = feedback_matrices(0, L, WIDTH, C).double() if method == "dfa" else None
    found = source(method, feedback=feedback, estimator=estimator).credits(network, hiddens, logits, Y)
    assert not found.requires_grad
    assert all(parameter.grad is None for parameter in [*network.parameters(), *estimator.parameters()])


def test_output_error_and_terminal_gradient_against_one_sample_at_a_time() -> None:
    network, x = _network(), _draw(B, D)
    reference = slow.SlowNetwork(slow.parameters_of(network))
    logits, hiddens = network(x, return_hidden=True)
    errors, deltas = output_error(logits, Y), terminal_gradient(network, hiddens[-1], Y)
    for i in range(B):
        torch.testing.assert_close(errors[i], reference.error(x[i], int(Y[i])), rtol=1e-10, atol=1e-12)
        expected = reference.loss_gradient(x[i], int(Y[i]), L)
        torch.testing.assert_close(deltas[i], expected, rtol=1e-10, atol=1e-12)


def test_feedback_matrices() -> None:
    matrices = feedback_matrices(42, 4, 256, 10)
    assert matrices.shape == (4, 256, 10)
    assert matrices.dtype == torch.float32
    for layer in range(4):
        drawn = torch.randn(256, 10, generator=generator(42, "feedback", layer)) / math.sqrt(10)
        torch.testing.assert_close(matrices[layer], drawn, rtol=1e-6, atol=0)
    assert matrices.std().item() == pytest.approx(1 / math.sqrt(10), rel=0.03)
    assert matrices.mean().item() == pytest.approx(0, abs=0.01)
    assert torch.equal(feedback_matrices(42, 2, 256, 10), matrices[:2])
    assert not torch.equal(feedback_matrices(43, 4, 256, 10), matrices)


# -- networks side by side -----------------------------------------------------------------------------------------

SOURCES: list[tuple[Any, dict[str, Any]]] = [
    ("oracle_bp", {}),
    ("oracle_bp", {"oracle_reduction": "sum"}),
    ("dfa", {"feedback": feedback_matrices(7, L, WIDTH, C).double()}),
    ("vec", {"estimator": _estimator(WIDTH, C)}),
    ("scalar_cb", {"estimator": _estimator(1, C)}),
    ("scalar_cb", {"estimator": _estimator(1, WIDTH), "s_source": "delta_L"}),
    ("state_bridge", {"estimator": _estimator(WIDTH, C)}),
]


def _side_by_side(residual_add: bool, count: int = 3) -> tuple[list[ResidualMLP], FunctionalMLP]:
    """Networks that differ in every parameter above the embedding, and all of them as one."""
    networks = [_network(residual_add) for _ in range(count)]
    for index, network in enumerate(networks):
        draws = generator(index, "apart")
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                if not name.startswith("embed."):
                    parameter.add_(torch.randn(parameter.shape, generator=draws, dtype=torch.float64), alpha=0.2)
    stacked = {name: torch.stack([n.state_dict()[name] for n in networks]) for name in networks[0].state_dict()}
    return networks, FunctionalMLP(stacked.__getitem__, L, residual_add)


@pytest.mark.parametrize("residual_add", [True, False])
@pytest.mark.parametrize(("method", "options"), SOURCES, ids=lambda value: value if isinstance(value, str) else "")
def test_credits_of_networks_side_by_side_are_each_one_s_own(
    residual_add: bool, method: Any, options: dict[str, Any]
) -> None:
    networks, together = _side_by_side(residual_add)
    x = _draw(B, D)
    h = networks[0].embed(x)
    with torch.no_grad():
        hiddens = together.hiddens(h.expand(len(networks), *h.shape))
        logits = together.head(hiddens[-1])
    found = source(method, **options).credits(together, hiddens, logits, Y)
    assert found.shape == (L, len(networks), B, WIDTH)
    for index, network in enumerate(networks):
        torch.testing.assert_close(found[:, index], _credits(method, network, x, **options), rtol=1e-9, atol=1e-12)
    # They are not all alike, so a mix-up would show.
    assert (found[:, 0] - found[:, 1]).abs().max() > 1e-3 * found.abs().max()


@pytest.mark.parametrize(("method", "options"), SOURCES, ids=lambda value: value if isinstance(value, str) else "")
def test_one_network_alone_in_a_stack_has_its_own_credits(method: Any, options: dict[str, Any]) -> None:
    networks, together = _side_by_side(True, count=1)
    x = _draw(B, D)
    with torch.no_grad():
        hiddens = together.hiddens(networks[0].embed(x).unsqueeze(0))
        logits = together.head(hiddens[-1])
    found = source(method, **options).credits(together, hiddens, logits, Y)
    torch.testing.assert_close(found[:, 0], _credits(method, networks[0], x, **options), rtol=1e-9, atol=1e-12)


def test_the_times_of_layers_broadcast_over_everything_between_layer_and_sample() -> None:
    for shape in ((4, 2, 3), (4, 5, 2, 3)):
        times = layer_times(torch.zeros(shape, dtype=torch.float64))
        assert times.dim() == len(shape) - 1
        expected = torch.tensor([0.0, 0.25, 0.5, 0.75], dtype=torch.float64)
        assert torch.equal(times.flatten(), expected)
        assert torch.broadcast_shapes(times.shape, shape[:-1]) == shape[:-1]


# -- the last layers alone -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [0, 1, 2])
@pytest.mark.parametrize(("method", "options"), SOURCES, ids=lambda value: value if isinstance(value, str) else "")
def test_credits_from_a_layer_on_are_those_of_the_last_layers(first: int, method: Any, options: dict[str, Any]) -> None:
    networks, together = _side_by_side(False)
    x = _draw(B, D)
    every = _credits(method, networks[0], x, **options)
    some = _credits(method, networks[0], x, first=first, **options)
    torch.testing.assert_close(some, every[first:], rtol=1e-10, atol=1e-13)
    with torch.no_grad():
        hiddens = together.hiddens(networks[0].embed(x).expand(len(networks), B, WIDTH))
        logits = together.head(hiddens[-1])
    whole = source(method, **options).credits(together, hiddens, logits, Y)
    part = source(method, **options).credits(together, hiddens, logits, Y, first)
    torch.testing.assert_close(part, whole[first:], rtol=1e-10, atol=1e-13)


def test_the_times_of_the_last_layers() -> None:
    every = layer_times(torch.zeros(4, 2, 3))
    for first in range(4):
        assert torch.equal(layer_times(torch.zeros(4 - first, 2, 3), first), every[first:])
