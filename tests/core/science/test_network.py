from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
import pytest
import torch

from creditgrid.core.science.network import ResidualMLP
from creditgrid.core.science.random_streams import generator

Vector: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]


def _network(residual_add: bool = True, w2_std: float = 0.3) -> ResidualMLP:
    """A float64 network whose every parameter is random, so that a bias or a scale left out would show."""
    network = ResidualMLP(12, 6, 5, 3, residual_add, w2_std, generator=generator(0, "test")).double()
    draws = generator(1, "test")
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draws, dtype=torch.float64), alpha=0.3)
    return network


class SlowNetwork:
    """One sample at a time, one unit at a time, in float64 NumPy and the standard library."""

    def __init__(self, network: ResidualMLP) -> None:
        self.p = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
        self.residual_add = network.residual_add

    def linear(self, name: str, x: Vector) -> Vector:
        weight, bias = self.p[f"{name}.weight"], self.p[f"{name}.bias"]
        return np.array(
            [sum(w * v for w, v in zip(row, x, strict=True)) + b for row, b in zip(weight, bias, strict=True)]
        )

    def layer_norm(self, name: str, x: Vector) -> Vector:
        mean = sum(x) / len(x)
        variance = sum((v - mean) ** 2 for v in x) / len(x)
        scaled = np.array([(v - mean) / math.sqrt(variance + 1e-5) for v in x])
        return np.array(scaled * self.p[f"{name}.weight"] + self.p[f"{name}.bias"])

    def step(self, h: Vector, layer: int) -> Vector:
        inner = self.linear(f"blocks.{layer}.w1", self.layer_norm(f"blocks.{layer}.ln", h))
        gelu = np.array([v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in inner])
        branch = self.linear(f"blocks.{layer}.w2", gelu)
        return h + branch if self.residual_add else branch

    def head(self, h: Vector) -> Vector:
        return self.linear("out_head", self.layer_norm("out_ln", h))


@pytest.mark.parametrize("residual_add", [True, False])
def test_logits_and_hiddens_against_a_slow_network(residual_add: bool) -> None:
    network = _network(residual_add)
    slow = SlowNetwork(network)
    x = torch.randn(4, 12, generator=generator(2, "test"), dtype=torch.float64)
    logits, hiddens = network(x, return_hidden=True)
    assert [h.shape for h in hiddens] == [(4, 6)] * 4
    for sample in range(4):
        h = slow.linear("embed", x[sample].numpy())
        np.testing.assert_allclose(hiddens[0][sample].detach(), h, rtol=1e-12, atol=1e-13)
        for layer in range(3):
            h = slow.step(h, layer)
            np.testing.assert_allclose(hiddens[layer + 1][sample].detach(), h, rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(logits[sample].detach(), slow.head(h), rtol=1e-12, atol=1e-13)
    assert torch.equal(network(x), logits)


@pytest.mark.parametrize("residual_add", [True, False])
def test_running_on_from_any_layer_gives_the_full_passs_logits(residual_add: bool) -> None:
    network = _network(residual_add)
    logits, hiddens = network(
        torch.randn(4, 12, dtype=torch.float64, generator=generator(2, "test")), return_hidden=True
    )
    for layer, hidden in enumerate(hiddens):
        assert torch.equal(network.forward_from_layer(hidden, layer), logits)
    assert torch.equal(network.head(hiddens[-1]), logits)


@pytest.mark.parametrize("layer", [-1, 4])
def test_a_layer_outside_the_network_is_refused(layer: int) -> None:
    with pytest.raises(ValueError, match=f"layer {layer} is outside 0…3"):
        _network().forward_from_layer(torch.zeros(1, 6, dtype=torch.float64), layer)


def test_state_dict_names_and_public_attributes() -> None:
    network = ResidualMLP(12, 6, 5, 2)
    block = ["ln.weight", "ln.bias", "w1.weight", "w1.bias", "w2.weight", "w2.bias"]
    assert list(network.state_dict()) == [
        "embed.weight",
        "embed.bias",
        *(f"blocks.{layer}.{name}" for layer in range(2) for name in block),
        "out_ln.weight",
        "out_ln.bias",
        "out_head.weight",
        "out_head.bias",
    ]
    assert (network.num_blocks, network.d_hidden, len(network.blocks)) == (2, 6, 2)
    assert network.embed.weight.shape == (6, 12)
    assert network.out_head.weight.shape == (5, 6)


def test_a_seeded_network_is_reproducible_and_leaves_the_global_state_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = ResidualMLP(12, 6, 5, 2, generator=generator(3, "init"))
    assert torch.equal(torch.get_rng_state(), before)
    again = ResidualMLP(12, 6, 5, 2, generator=generator(3, "init")).state_dict()
    other = ResidualMLP(12, 6, 5, 2, generator=generator(4, "init")).state_dict()
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, again[name])
        drawn = not ("ln." in name or name.endswith("w2.bias"))
        assert torch.equal(tensor, other[name]) != drawn


def test_an_unseeded_network_draws_what_a_plain_script_would() -> None:
    torch.manual_seed(5)
    network = ResidualMLP(12, 6, 5, 1, w2_std=0.01)
    torch.manual_seed(5)
    embed = torch.nn.Linear(12, 6)
    w1, w2 = torch.nn.Linear(6, 6), torch.nn.Linear(6, 6)
    torch.nn.init.normal_(w2.weight, std=0.01)
    head = torch.nn.Linear(6, 5)
    assert torch.equal(network.embed.weight, embed.weight)
    assert torch.equal(network.get_parameter("blocks.0.w1.bias"), w1.bias)
    assert torch.equal(network.get_parameter("blocks.0.w2.weight"), w2.weight)
    assert torch.equal(network.out_head.weight, head.weight)


@pytest.mark.parametrize("seeded", [True, False])
def test_initial_distributions(seeded: bool) -> None:
    torch.manual_seed(0)
    draws = generator(0, "init") if seeded else None
    state = ResidualMLP(400, 300, 200, 2, w2_std=0.02, generator=draws).state_dict()
    for name, fan_in in [("embed", 400), ("blocks.0.w1", 300), ("blocks.1.w1", 300), ("out_head", 300)]:
        bound = 1 / math.sqrt(fan_in)
        for tensor, tolerance in [(state[f"{name}.weight"], 0.01), (state[f"{name}.bias"], 0.15)]:
            assert tensor.abs().max() <= bound
            assert tensor.abs().max() > 0.95 * bound
            # Uniform in ±bound: variance bound²/3 and fourth moment bound⁴/5.
            assert tensor.square().mean().item() == pytest.approx(bound**2 / 3, rel=2 * tolerance)
            assert tensor.pow(4).mean().item() == pytest.approx(bound**4 / 5, rel=4 * tolerance)
    for layer in range(2):
        weight = state[f"blocks.{layer}.w2.weight"]
        assert weight.std().item() == pytest.approx(0.02, rel=0.02)
        assert abs(weight.mean().item()) < 4 * 0.02 / 300
        # Normal: fourth moment 3 σ⁴.
        assert weight.pow(4).mean().item() == pytest.approx(3 * 0.02**4, rel=0.1)
        assert not state[f"blocks.{layer}.w2.bias"].any()
    for name in ["blocks.0.ln", "out_ln"]:
        assert (state[f"{name}.weight"] == 1).all()
        assert not state[f"{name}.bias"].any()
