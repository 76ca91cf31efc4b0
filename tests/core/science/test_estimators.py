from __future__ import annotations

import math

import numpy as np
import pytest
import slow_reference as slow
import torch
from torch import nn

from creditgrid.core.science.estimators import EstimatorNet, time_embedding
from creditgrid.core.science.random_streams import generator


def _estimator(out_dim: int = 6, d_hidden: int = 6, s_dim: int = 5) -> EstimatorNet:
    """A float64 estimator whose every parameter is random, so that a bias or a scale left out would show."""
    estimator = EstimatorNet(d_hidden, s_dim, out_dim, generator=generator(0, "test")).double()
    draws = generator(1, "test")
    with torch.no_grad():
        for parameter in estimator.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draws, dtype=torch.float64), alpha=0.1)
    return estimator


def _draw(*shape: int, index: int = 2) -> torch.Tensor:
    return torch.randn(shape, generator=generator(index, "test"), dtype=torch.float64)


def test_the_output_against_numpy_loops() -> None:
    estimator = _estimator()
    p = {name: tensor.detach().numpy() for name, tensor in estimator.state_dict().items()}
    h, s, t = _draw(3, 6), _draw(3, 5, index=3), 0.75

    found = estimator(h, t, s)

    assert found.shape == (3, 6)
    for row, state, source in zip(found, h.tolist(), s.tolist(), strict=True):
        mean = sum(state) / 6
        deviation = math.sqrt(sum((v - mean) ** 2 for v in state) / 6 + 1e-5)
        v = [(x - mean) / deviation * w + b for x, w, b in zip(state, p["ln.weight"], p["ln.bias"], strict=True)]
        v += [math.sin(t * math.exp(-math.log(10000) * i / 16)) for i in range(16)]
        v += [math.cos(t * math.exp(-math.log(10000) * i / 16)) for i in range(16)]
        v += source
        for layer in (0, 2, 4, 6):
            weight, bias = p[f"net.{layer}.weight"], p[f"net.{layer}.bias"]
            v = [sum(w * x for w, x in zip(unit, v, strict=True)) + b for unit, b in zip(weight, bias, strict=True)]
            if layer < 6:
                v = [x * 0.5 * (1 + math.erf(x / math.sqrt(2))) for x in v]
        np.testing.assert_allclose(row.detach().numpy(), v, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(("out_dim", "tail"), [(6, (6,)), (1, ())])
def test_layers_and_draws_in_one_call_equal_one_call_each(out_dim: int, tail: tuple[int, ...]) -> None:
    estimator = _estimator(out_dim)
    p = slow.parameters_of(estimator)
    h, s = _draw(3, 2, 4, 6), _draw(4, 5, index=3)
    depths = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)

    found = estimator(h, depths[:, None, None], s)

    assert found.shape == (3, 2, 4, *tail)
    for layer in range(3):
        for k in range(2):
            for i in range(4):
                expected = slow.estimate(p, h[layer, k, i], depths[layer].item(), s[i])
                torch.testing.assert_close(found[layer, k, i].reshape(-1), expected, rtol=1e-11, atol=1e-12)


def test_a_number_and_a_tensor_of_t_agree() -> None:
    estimator, h, s = _estimator(), _draw(4, 6), _draw(4, 5, index=3)
    t = torch.tensor(0.25, dtype=torch.float64)
    torch.testing.assert_close(estimator(h, 0.25, s), estimator(h, t, s), rtol=0, atol=0)


def test_time_embedding_has_sines_then_cosines() -> None:
    embedded = time_embedding(torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert embedded[0].tolist() == [0.0] * 16 + [1.0] * 16
    assert embedded[1, 0].item() == pytest.approx(math.sin(1.0), rel=1e-14)
    assert embedded[1, 15].item() == pytest.approx(math.sin(10000 ** (-15 / 16)), rel=1e-12)
    assert embedded[1, 16].item() == pytest.approx(math.cos(1.0), rel=1e-14)


def test_tensor_names_and_shapes() -> None:
    state = EstimatorNet(6, 5, 1, generator=generator(0, "test")).state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == {
        "ln.weight": (6,),
        "ln.bias": (6,),
        "net.0.weight": (256, 6 + 32 + 5),
        "net.0.bias": (256,),
        "net.2.weight": (256, 256),
        "net.2.bias": (256,),
        "net.4.weight": (256, 256),
        "net.4.bias": (256,),
        "net.6.weight": (1, 256),
        "net.6.bias": (1,),
    }


def test_initialisation_comes_from_the_generator_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    one, same, other = (EstimatorNet(6, 5, 6, generator=generator(seed, "test")) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, same.state_dict()[name])
        if name.startswith("net"):
            assert not torch.equal(tensor, other.state_dict()[name])


def test_initialisation_has_torch_s_default_distribution() -> None:
    estimator = EstimatorNet(64, 10, 64, generator=generator(0, "test"))
    assert torch.equal(estimator.ln.weight, torch.ones(64))
    assert torch.equal(estimator.ln.bias, torch.zeros(64))
    for layer in (0, 2, 4, 6):
        linear = estimator.net[layer]
        assert isinstance(linear, nn.Linear)
        bound = 1 / math.sqrt(linear.in_features)
        for tensor in (linear.weight, linear.bias):
            assert tensor.abs().max().item() <= bound
            assert tensor.abs().max().item() > 0.9 * bound
        assert linear.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
