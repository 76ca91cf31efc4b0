"""Rollouts side by side against one network stepped at a time, one loss and one sample at a time."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Sequence
from typing import Any

import pytest
import slow_reference as slow
import torch
from credit_kit import COSINE, INNER, RULES, SHIFT, kappa_of, slow_credit, source
from torch import Tensor

from creditgrid.core.science import rollout as module
from creditgrid.core.science.credit import feedback_matrices
from creditgrid.core.science.credit_sources import CreditSource
from creditgrid.core.science.estimators import EstimatorNet
from creditgrid.core.science.network import ResidualMLP
from creditgrid.core.science.random_streams import generator
from creditgrid.core.science.rollout import Rollout, rollouts
from creditgrid.core.units.rule import Rule

L, D, WIDTH, C, N, K = 3, 12, 6, 5, 4, 3
SEED = 6


def _draw(*shape: int, index: int = 2) -> Tensor:
    return torch.randn(shape, generator=generator(index, "test"), dtype=torch.float64)


X_STEPS, Y_STEPS = _draw(K, N, D), torch.tensor([[0, 4, 2, 2], [1, 1, 3, 0], [4, 3, 2, 1]])
MEASURED = {
    "held": (_draw(5, D, index=3), torch.tensor([3, 3, 1, 0, 2])),
    "same": (_draw(3, D, index=4), torch.tensor([2, 0, 4])),
}


def _randomise(net: torch.nn.Module, scale: float) -> None:
    draws = generator(1, "test")
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draws, dtype=torch.float64), alpha=scale)


def _network(residual_add: bool = True) -> ResidualMLP:
    network = ResidualMLP(D, WIDTH, C, L, residual_add, 0.3, generator=generator(0, "test")).double()
    _randomise(network, 0.3)
    return network.requires_grad_(False)


def _estimator(out_dim: int, s_dim: int = C) -> EstimatorNet:
    estimator = EstimatorNet(WIDTH, s_dim, out_dim, generator=generator(out_dim, "estimator")).double()
    _randomise(estimator, 0.1)
    return estimator.requires_grad_(False)


SOURCES = {
    "oracle": source("oracle_bp"),
    "oracle sum": source("oracle_bp", oracle_reduction="sum"),
    "dfa": source("dfa", feedback=feedback_matrices(7, L, WIDTH, C).double()),
    "vec": source("vec", estimator=_estimator(WIDTH)),
    "scalar": source("scalar_cb", estimator=_estimator(1)),
    "scalar delta": source("scalar_cb", estimator=_estimator(1, WIDTH), s_source="delta_L"),
    "bridge": source("state_bridge", estimator=_estimator(WIDTH)),
}


def _run(
    network: ResidualMLP,
    wanted: Sequence[Rollout],
    steps: int = K,
    blocks: Sequence[int] = range(L),
    sources: dict[str, CreditSource] = SOURCES,
    seed: int = SEED,
    after: Sequence[int] | None = None,
) -> dict[str, Tensor]:
    dtype = network.embed.weight.dtype
    measured = {name: (x.to(dtype), y) for name, (x, y) in MEASURED.items()}
    batches = X_STEPS[:steps].to(dtype), Y_STEPS[:steps]
    return rollouts(network, sources, wanted, *batches, measured, blocks, seed, after)


def _serial(network: ResidualMLP, rollout: Rollout, blocks: Sequence[int] = range(L)) -> dict[str, list[float]]:
    """One rollout from scratch: a step, then every sample of every measured batch, and so on."""
    of = SOURCES[rollout.source]
    now = slow.SlowNetwork(slow.parameters_of(network), network.residual_add)
    found: dict[str, list[float]] = {name: [] for name in MEASURED}
    for step in range(K + 1):
        for name, (x, y) in MEASURED.items():
            found[name].append(slow.loss_and_accuracy(now, x, y.tolist())[0])
        if step == K:
            break
        xs, labels = X_STEPS[step], Y_STEPS[step].tolist()
        credits = torch.stack(
            [
                torch.stack([slow_credit(of, now, x, label, layer) for x, label in zip(xs, labels, strict=True)])
                for layer in range(L)
            ]
        ).detach()
        if getattr(of.method, "oracle_reduction", "sum") == "mean":
            credits /= N
        gradients = slow.local_gradients(
            now,
            xs,
            labels,
            credits,
            blocks,
            update_head=True,
            normalise=rollout.norm_mode == "norm",
            rule=rollout.rule.name,
            kappa=kappa_of(rollout.rule),
        )
        draws = generator(SEED, "step/noise", step)
        for name, p in now.p.items():
            if name.startswith("embed."):
                continue
            xi = torch.randn(p.shape, generator=draws).double()
            if name in gradients:
                g = gradients[name] + rollout.noise * xi
                if rollout.clamp is not None:
                    g = g.clamp(-rollout.clamp, rollout.clamp)
                gradients[name] = g + rollout.weight_decay * p.detach()
        stepped = slow.step(now, gradients, rollout.eta, rollout.radius).p
        now = slow.SlowNetwork({name: p.detach().requires_grad_() for name, p in stepped.items()}, now.residual_add)
    return found


def _assert_as_serial(
    network: ResidualMLP, wanted: Sequence[Rollout], found: dict[str, Tensor], blocks: Sequence[int] = range(L)
) -> None:
    for position, rollout in enumerate(wanted):
        for name, path in _serial(network, rollout, blocks).items():
            assert found[name].shape == (len(wanted), K + 1)
            assert found[name].dtype == torch.float64
            expected = torch.tensor(path, dtype=torch.float64)
            torch.testing.assert_close(found[name][position], expected, rtol=1e-9, atol=1e-11, msg=str(rollout))


def _mixed() -> list[Rollout]:
    """Sources that alternate, so that gathering them is put right again, and every way of stepping."""
    return [
        Rollout(source, rule, norm_mode, eta)
        for rule, norm_mode, source, eta in itertools.product(RULES, ("raw", "norm"), ("dfa", "oracle", "vec"), (0.05,))
    ]


@pytest.mark.parametrize("residual_add", [True, False])
def test_every_rule_and_norm_against_a_serial_loop(residual_add: bool) -> None:
    network, wanted = _network(residual_add), _mixed()
    found = _run(network, wanted)
    _assert_as_serial(network, wanted, found)
    assert (found["held"][:, 0] - found["held"][:, -1]).abs().min() > 1e-6  # all of them move


def test_every_source_against_a_serial_loop() -> None:
    network = _network()
    wanted = [Rollout(source, INNER, "norm", 0.1) for source in SOURCES]
    _assert_as_serial(network, wanted, _run(network, wanted))


def test_noise_clamp_and_weight_decay_against_a_serial_loop() -> None:
    network = _network()
    wanted = [
        Rollout(source, INNER, "norm", 0.1, clamp, weight_decay, noise)
        for source, clamp, weight_decay, noise in itertools.product(("dfa",), (None, 0.02, 1.0), (0.0, 0.5), (0.0, 0.3))
    ]
    found = _run(network, wanted)
    _assert_as_serial(network, wanted, found)
    assert len({round(loss, 9) for loss in found["held"][:, -1].tolist()}) > 9  # a clamp of 1 bounds few


def test_a_trust_region_shortens_the_steps_that_are_too_long_against_a_serial_loop() -> None:
    network = _network()
    wanted = [
        Rollout("dfa", rule, "norm", 0.1, clamp, decay, 0.0, radius)
        for rule, clamp, decay, radius in itertools.product(RULES, (None, 0.02), (0.0, 0.5), (None, 1e-3, 0.05, 1e6))
    ]
    found = _run(network, wanted)
    _assert_as_serial(network, wanted, found)
    lost = found["held"][:, 0] - found["held"][:, -1]
    assert (lost[1::4].abs() < lost[0::4].abs()).all()  # the shortest steps change least
    torch.testing.assert_close(lost[3::4], lost[0::4], rtol=1e-12, atol=0)  # none is as long as 1e6


def test_target_shift_normalises_a_credit_once_whatever_the_norm_mode() -> None:
    # So small that the floor of the RMS is felt: normalised twice it would be half as long again.
    tiny = source("dfa", feedback=1e-6 * feedback_matrices(7, L, WIDTH, C).double())
    wanted = [Rollout("tiny", SHIFT, norm_mode, 0.5) for norm_mode in ("raw", "norm")]
    inner = Rollout("tiny", INNER, "norm", 0.5)
    raw, norm, once = _run(_network(), [*wanted, inner], sources={"tiny": tiny})["held"]
    torch.testing.assert_close(raw, norm, rtol=1e-12, atol=1e-14)
    assert (raw - once).abs().max() > 1e-3  # kappa is 0.3


@pytest.mark.parametrize("blocks", [[2], [1, 2], []])
def test_only_the_blocks_that_are_named_and_the_head_step(blocks: list[int]) -> None:
    network = _network()
    wanted = [Rollout("dfa", INNER, "raw", 0.3, None, 0.1, 0.1)]
    _assert_as_serial(network, wanted, _run(network, wanted, blocks=blocks), blocks)


def test_more_steps_start_as_fewer_do() -> None:
    network, wanted = _network(), _mixed()
    whole = _run(network, wanted)
    for steps in range(K):
        for name, path in _run(network, wanted, steps).items():
            assert path.shape == (len(wanted), steps + 1)
            torch.testing.assert_close(path, whole[name][:, : steps + 1], rtol=1e-12, atol=1e-14)


def test_only_what_is_asked_for_is_measured_and_it_is_the_same() -> None:
    network, wanted = _network(), _mixed()
    whole = _run(network, wanted)
    for name, found in _run(network, wanted, after=(0, K)).items():
        assert torch.equal(found, whole[name][:, [0, K]])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_rollout_s_numbers_do_not_depend_on_its_company(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    network, wanted = _network().to(dtype), [*_mixed(), Rollout("dfa", COSINE, "raw", 0.05, 0.1, 0.1, 0.2)]
    sources = {name: _typed(source, dtype) for name, source in SOURCES.items()}
    close: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-14} if dtype == torch.float64 else {"rtol": 1e-5, "atol": 1e-6}
    together = _run(network, wanted, sources=sources)
    shuffled = torch.randperm(len(wanted), generator=generator(0, "test")).tolist()
    other = _run(network, [wanted[i] for i in shuffled], sources=sources)
    for name, paths in together.items():
        torch.testing.assert_close(other[name], paths[shuffled], **close)
    monkeypatch.setattr(module, "CHUNK_BYTES", 1)  # one at a time
    for name, paths in _run(network, wanted, sources=sources).items():
        torch.testing.assert_close(paths, together[name], **close)
    floats = sum(p.numel() for n, p in network.named_parameters() if not n.startswith("embed."))
    per = (2 * floats + 6 * L * N * WIDTH) * network.embed.weight.element_size()
    monkeypatch.setattr(module, "CHUNK_BYTES", 4 * per)  # four at a time, which no number of a source divides
    for name, paths in _run(network, wanted, sources=sources).items():
        torch.testing.assert_close(paths, together[name], **close)


def _typed(of: CreditSource, dtype: torch.dtype) -> CreditSource:
    return CreditSource(of.method, {name: tensor.to(dtype) for name, tensor in of.tensors.items()})


@pytest.mark.parametrize("rule", RULES)
def test_a_rollout_that_diverges_harms_no_other(rule: Rule) -> None:
    network = _network().float()
    sources = {name: _typed(source, torch.float32) for name, source in SOURCES.items()}
    sources["lost"] = source("dfa", feedback=torch.full((L, WIDTH, C), math.nan))
    sane = [Rollout(source, rule, "norm", 0.05) for source in ("dfa", "oracle", "bridge")]
    wild = [
        Rollout("dfa", rule, "norm", 1e30),
        Rollout("lost", rule, "norm", 0.05),
        Rollout("vec", rule, "raw", 1e38),
    ]
    found = _run(network, [wild[0], sane[0], wild[1], sane[1], wild[2], sane[2]], sources=sources)
    alone = _run(network, sane, sources=sources)
    for name, paths in found.items():
        torch.testing.assert_close(paths[1::2], alone[name], rtol=1e-6, atol=1e-6)
        assert paths[1::2].isfinite().all()
        assert not paths[::2, -1].isfinite().any()
        assert paths[::2, 0].isfinite().all()  # before any step


def test_a_clamp_bounds_its_own_rollout_alone() -> None:
    network = _network()
    wanted = [Rollout("dfa", INNER, "norm", 0.1, clamp) for clamp in (None, 1e-9, None)]
    held = _run(network, wanted)["held"]
    torch.testing.assert_close(held[0], held[2], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(held[1], held[1, :1].expand(K + 1), rtol=0, atol=1e-7)
    assert (held[0, -1] - held[0, 0]).abs() > 1e-3


def test_the_network_and_the_sources_are_left_as_they_were() -> None:
    network = _network().requires_grad_(True)
    before = copy.deepcopy(network.state_dict())
    _run(network, _mixed())
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in network.parameters())
    estimators = [of.fitted for of in SOURCES.values() if isinstance(of.fitted, EstimatorNet)]
    assert len(estimators) == 4
    assert all(parameter.grad is None for estimator in estimators for parameter in estimator.parameters())


def test_rollouts_repeat_bit_for_bit_and_only_noisy_ones_follow_the_seed() -> None:
    network = _network()
    wanted = [Rollout("dfa", INNER, "norm", 0.1, None, 0.0, noise) for noise in (0.0, 0.3)]
    first, again, other = (_run(network, wanted, seed=seed)["held"] for seed in (SEED, SEED, SEED + 1))
    assert torch.equal(first, again)
    assert torch.equal(first[0], other[0])
    assert not torch.equal(first[1], other[1])


def test_the_oracle_descends() -> None:
    network = ResidualMLP(D, WIDTH, C, L, generator=generator(0, "test")).double().requires_grad_(False)
    wanted = [Rollout("oracle", rule, "norm", 1e-2) for rule in RULES]
    x, y = X_STEPS[:1].repeat(5, 1, 1), Y_STEPS[:1].repeat(5, 1)  # one batch, over and over
    losses = rollouts(network, SOURCES, wanted, x, y, {"same": (x[0], y[0])}, range(L))["same"]
    assert (losses.diff() < 0).all()


def test_what_is_not_given_is_named() -> None:
    with pytest.raises(KeyError, match="missing"):
        _run(_network(), [Rollout("missing", INNER, "raw", 0.1)])
