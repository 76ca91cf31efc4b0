"""Measures of a credit's quality against loops over one sample, one layer and one direction at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import slow_reference as slow
import torch
from credit_kit import slow_credit, source
from torch import Tensor

from creditgrid.core.science import credit_quality
from creditgrid.core.science.credit import feedback_matrices
from creditgrid.core.science.credit_quality import NUDGE_ETAS, RHO_DIRECTIONS, RHO_EPS, Batch, file_batches
from creditgrid.core.science.credit_sources import CreditSource
from creditgrid.core.science.data import ImageData
from creditgrid.core.science.estimators import EstimatorNet
from creditgrid.core.science.network import ResidualMLP
from creditgrid.core.science.random_streams import generator

L, WIDTH, C = 3, 6, 5


@pytest.fixture
def few(tiny_data: ImageData) -> ImageData:
    """Eleven test images: two batches of four and one of three."""
    return replace(tiny_data, x_test=tiny_data.x_test[:11], y_test=tiny_data.y_test[:11])


def _randomise(net: torch.nn.Module, scale: float) -> None:
    draws = generator(1, "test")
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draws, dtype=torch.float64), alpha=scale)


def _network(residual_add: bool = True) -> ResidualMLP:
    network = ResidualMLP(192, WIDTH, C, L, residual_add, 0.3, generator=generator(0, "test")).double()
    _randomise(network, 0.1)
    return network.requires_grad_(False)


def _estimator(out_dim: int, s_dim: int = C) -> EstimatorNet:
    estimator = EstimatorNet(WIDTH, s_dim, out_dim, generator=generator(out_dim, "estimator")).double()
    _randomise(estimator, 0.1)
    return estimator.requires_grad_(False)


def _sources() -> dict[str, CreditSource]:
    return {
        "oracle": source("oracle_bp"),
        "oracle sum": source("oracle_bp", oracle_reduction="sum"),
        "dfa": source("dfa", feedback=feedback_matrices(7, L, WIDTH, C).double()),
        "vec": source("vec", estimator=_estimator(WIDTH)),
        "scalar": source("scalar_cb", estimator=_estimator(1, WIDTH), s_source="delta_L"),
        "bridge": source("state_bridge", estimator=_estimator(WIDTH)),
    }


def _images(data: ImageData) -> tuple[list[Tensor], list[int]]:
    """Test images as float64 inputs in file order, not augmented."""
    mean, std = data.mean.double()[:, None, None], data.std.double()[:, None, None]
    return [((x.double() / 255 - mean) / std).flatten() for x in data.x_test], data.y_test.tolist()


def _slow(network: ResidualMLP) -> slow.SlowNetwork:
    return slow.SlowNetwork(slow.parameters_of(network), network.residual_add)


def _credit(of: CreditSource, reference: slow.SlowNetwork, x: Tensor, label: int, layer: int) -> Tensor:
    return slow_credit(of, reference, x, label, layer)


def _cosine(a: Tensor, b: Tensor) -> float:
    return float((a * b).sum() / (a.norm() * b.norm()))


def _batch(network: ResidualMLP, data: ImageData, size: int = 4) -> Batch:
    return next(file_batches(network, data, size))


# -- batches -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "count", "sizes"), [(4, None, [4, 4, 3]), (4, 2, [4, 4]), (4, 10, [4, 4, 3]),
                                                      (20, None, [11]), (20, 1, [11]), (1, 3, [1, 1, 1])])  # fmt: skip
def test_file_batches_are_the_test_set_in_order(few: ImageData, size: int, count: int | None, sizes: list[int]) -> None:
    network = _network()
    batches = list(file_batches(network, few, size, count))
    assert [len(batch.y) for batch in batches] == sizes
    xs, labels = _images(few)
    reference, start = _slow(network), 0
    for batch in batches:
        assert batch.y.tolist() == labels[start : start + len(batch.y)]
        assert len(batch.hiddens) == L + 1
        for i in range(len(batch.y)):
            expected = reference.hiddens(xs[start + i])
            for layer in range(L + 1):
                torch.testing.assert_close(batch.hiddens[layer][i], expected[layer].detach(), rtol=1e-5, atol=1e-6)
            logits = reference.logits(xs[start + i]).detach()
            torch.testing.assert_close(batch.logits[i], logits, rtol=1e-5, atol=1e-6)
        start += len(batch.y)


# -- gamma ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("residual_add", [True, False])
def test_gamma_is_the_mean_over_batches_of_the_mean_over_samples(few: ImageData, residual_add: bool) -> None:
    network, sources = _network(residual_add), _sources()
    batches = list(file_batches(network, few, 4))
    found = credit_quality.gamma(network, sources, batches)
    reference, (xs, labels) = _slow(network), _images(few)
    for name, of in sources.items():
        for layer in range(L):
            cosines = [
                _cosine(_credit(of, reference, x, label, layer), reference.loss_gradient(x, label, layer))
                for x, label in zip(xs, labels, strict=True)
            ]
            means = [sum(cosines[a:b]) / (b - a) for a, b in ((0, 4), (4, 8), (8, 11))]
            # Images are normalised in single precision.
            assert found[name][layer].item() == pytest.approx(sum(means) / 3, rel=1e-4, abs=1e-5), (name, layer)
    assert found["oracle"].tolist() == pytest.approx([1.0] * L, rel=1e-12)
    assert abs(found["dfa"]).max() < 0.999


def test_the_last_smaller_batch_weighs_as_much_as_a_full_one(few: ImageData) -> None:
    network, sources = _network(), {"dfa": _sources()["dfa"]}
    batches = list(file_batches(network, few, 10))
    each = [credit_quality.gamma(network, sources, [batch])["dfa"] for batch in batches]
    torch.testing.assert_close(credit_quality.gamma(network, sources, batches)["dfa"], (each[0] + each[1]) / 2)


def test_an_opposite_credit_has_gamma_of_minus_one_and_a_zero_one_of_zero(few: ImageData) -> None:
    network, batch = _network(), _batch(_network(), few)
    stack = credit_quality.gamma(network, {"zero": source("dfa", feedback=torch.zeros(L, WIDTH, C).double())}, [batch])
    assert stack["zero"].tolist() == [0.0] * L
    opposite: Any = _Opposite()
    assert credit_quality.gamma(network, {"o": opposite}, [batch])["o"].tolist() == pytest.approx([-1.0] * L)


class _Opposite:
    def credits(self, *of: Any) -> Tensor:
        return -source("oracle_bp").credits(*of)


# -- rho -----------------------------------------------------------------------------------------------------------


def _pearson(pairs: list[tuple[float, float]]) -> float:
    n = len(pairs)
    means = [sum(pair[k] for pair in pairs) / n for k in (0, 1)]
    both = sum((a - means[0]) * (b - means[1]) for a, b in pairs)
    spreads = [math.sqrt(sum((pair[k] - means[k]) ** 2 for pair in pairs)) for k in (0, 1)]
    return both / (spreads[0] * spreads[1])


def rho_of(network: ResidualMLP, sources: Mapping[str, CreditSource], batch: Batch, seed: int) -> Any:
    return credit_quality.rho(network, credit_quality.source_credits(network, sources, batch), batch, seed)


def nudge_of(network: ResidualMLP, sources: Mapping[str, CreditSource], batch: Batch) -> Any:
    return credit_quality.nudge(network, credit_quality.source_credits(network, sources, batch), batch)


@pytest.mark.parametrize("residual_add", [True, False])
def test_rho_is_the_correlation_over_all_samples_and_directions(few: ImageData, residual_add: bool) -> None:
    assert (RHO_DIRECTIONS, RHO_EPS) == (32, 1e-3)
    network, sources = _network(residual_add), _sources()
    batch = _batch(network, few)
    found = rho_of(network, sources, batch, seed=13)
    reference, (xs, labels) = _slow(network), _images(few)
    for layer in range(L):
        drawn = torch.randn(32, 4, WIDTH, generator=generator(13, "rho", layer)).double()
        pooled = [(i, slow.unit(gaussian[i])) for gaussian in drawn for i in range(4)]
        slopes = [slow.slope_along(reference, xs[i], labels[i], layer, v, 1e-3) for i, v in pooled]
        for name, of in sources.items():
            own = [_credit(of, reference, xs[i], labels[i], layer) for i in range(4)]
            pairs = [(float(torch.dot(own[i], v)), slope) for (i, v), slope in zip(pooled, slopes, strict=True)]
            assert found[name][layer].item() == pytest.approx(_pearson(pairs), rel=1e-6, abs=1e-7), (name, layer)
    assert found["oracle"].tolist() == pytest.approx([1.0] * L, abs=1e-4)
    torch.testing.assert_close(found["oracle sum"], found["oracle"], rtol=1e-12, atol=1e-12)
    assert abs(found["dfa"]).max() < 0.99


def test_rho_s_directions_follow_the_seed_alone(few: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    network, sources = _network(), _sources()
    batch = _batch(network, few)
    first, other = (rho_of(network, sources, batch, seed)["dfa"] for seed in (1, 2))
    assert not torch.equal(first, other)
    state = torch.get_rng_state()
    alone = rho_of(network, {"dfa": sources["dfa"]}, batch, 1)["dfa"]
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(alone, first, rtol=1e-12, atol=1e-14)
    monkeypatch.setattr(credit_quality, "CHUNK_BYTES", 1)  # one direction at a time
    torch.testing.assert_close(rho_of(network, sources, batch, 1)["dfa"], first, rtol=1e-10, atol=1e-12)


def test_rho_is_nan_where_one_side_does_not_vary(few: ImageData) -> None:
    network = _network()
    batch = _batch(network, few)
    nothing = {
        "zero": source("dfa", feedback=torch.zeros(L, WIDTH, C).double()),
        "oracle": source("oracle_bp"),
    }
    found = rho_of(network, nothing, batch, 1)
    assert found["zero"].isnan().all()
    assert found["oracle"].isfinite().all()
    with torch.no_grad():  # a loss that no hidden state moves
        network.out_head.weight.zero_()
    flat = rho_of(network, {"dfa": _sources()["dfa"]}, _batch(network, few), 1)
    assert flat["dfa"].isnan().all()


# -- nudge ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("residual_add", [True, False])
def test_nudge_against_one_sample_at_a_time(few: ImageData, residual_add: bool) -> None:
    assert NUDGE_ETAS == (0.001, 0.003, 0.01)
    network, sources = _network(residual_add), _sources()
    found = nudge_of(network, sources, _batch(network, few))
    reference, (xs, labels) = _slow(network), _images(few)
    for name, of in sources.items():
        assert found[name].shape == (L, 3)
        for layer in range(L):
            for place, eta in enumerate(NUDGE_ETAS):
                changes = []
                for x, label in zip(xs[:4], labels[:4], strict=True):
                    h, a = reference.hiddens(x)[layer].detach(), _credit(of, reference, x, label, layer)
                    after = slow.cross_entropy(reference.from_layer(h - eta * a / a.norm(), layer), label)
                    before = slow.cross_entropy(reference.from_layer(h, layer), label)
                    changes.append((after - before).item())
                expected = sum(changes) / 4
                assert found[name][layer, place].item() == pytest.approx(expected, rel=1e-3, abs=1e-8), (name, layer)
    assert (found["oracle"] < 0).all()
    torch.testing.assert_close(found["oracle"], found["oracle sum"], rtol=1e-9, atol=1e-14)


def test_a_zero_credit_nudges_nothing(few: ImageData) -> None:
    network = _network()
    zero = {"zero": source("dfa", feedback=torch.zeros(L, WIDTH, C).double())}
    assert nudge_of(network, zero, _batch(network, few))["zero"].abs().max() < 1e-14


# -- prediction error ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("residual_add", [True, False])
@pytest.mark.parametrize("size", [4, 11, 20])
def test_prediction_error_counts_every_test_image_once(few: ImageData, residual_add: bool, size: int) -> None:
    network, bridge = _network(residual_add), _estimator(WIDTH)
    found = credit_quality.prediction_error(network, source("state_bridge", estimator=bridge), few, size)
    reference, (xs, labels), p = _slow(network), _images(few), slow.parameters_of(bridge)
    for layer in range(L):
        misses = []
        for x, label in zip(xs, labels, strict=True):
            hiddens, error = reference.hiddens(x), reference.error(x, label)
            misses.append(((slow.estimate(p, hiddens[layer], layer / L, error) - hiddens[-1]) ** 2).sum().item())
        assert found[layer].item() == pytest.approx(sum(misses) / 11, rel=1e-4)


# -- double precision ----------------------------------------------------------------------------------------------


def test_in_double_copies_and_leaves_the_originals_alone() -> None:
    network = _network().float()
    sources = {
        name: CreditSource(of.method, {key: tensor.float() for key, tensor in of.tensors.items()})
        for name, of in _sources().items()
    }
    precise, doubled = credit_quality.in_double(network, sources)
    assert precise.embed.weight.dtype == torch.float64
    assert torch.equal(precise.embed.weight.float(), network.embed.weight)
    assert network.embed.weight.dtype == torch.float32
    assert doubled.keys() == sources.keys()
    for name, found in doubled.items():
        before = sources[name]
        assert found.method == before.method
        assert found.tensors.keys() == before.tensors.keys()
        for key, tensor in found.tensors.items():
            assert before.tensors[key].dtype == torch.float32
            assert torch.equal(tensor, before.tensors[key].double())
        if isinstance(found.fitted, EstimatorNet):
            assert found.fitted.net[0].weight.dtype == torch.float64
