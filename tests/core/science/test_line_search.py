from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import pytest
import slow_reference as slow
import torch
from credit_kit import COSINE, INNER, RULES, kappa_of, source
from torch import Tensor

from creditgrid.core.science import line_search as module
from creditgrid.core.science.line_search import Step, StepResult, line_search
from creditgrid.core.science.network import ResidualMLP
from creditgrid.core.science.random_streams import generator
from creditgrid.core.science.updates import update_blocks

L, D, WIDTH, C = 3, 12, 6, 5
Y_SAME, Y_HELD = torch.tensor([0, 4, 2, 2, 1]), torch.tensor([3, 3, 1])
ETAS = (1e-4, 3e-2, 1.0)


def _draw(*shape: int, index: int = 2) -> Tensor:
    return torch.randn(shape, generator=generator(index, "test"), dtype=torch.float64)


X_SAME, X_HELD = _draw(5, D), _draw(3, D, index=3)


def _network(residual_add: bool = True, num_blocks: int = L, perturbed: float = 0.3) -> ResidualMLP:
    network = ResidualMLP(D, WIDTH, C, num_blocks, residual_add, 0.3, generator=generator(0, "test")).double()
    draws = generator(1, "test")
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draws, dtype=torch.float64), alpha=perturbed)
    return network.requires_grad_(False)


def _sources(num_blocks: int = L) -> dict[str, Tensor]:
    return {"one": _draw(num_blocks, 5, WIDTH, index=4), "two": 1e-3 * _draw(num_blocks, 5, WIDTH, index=5)}


def _grid(etas: tuple[float, ...] = ETAS) -> list[Step]:
    axes: Any = (("one", "two"), ("last1", "last2", "all"), ("raw", "norm"), etas, (True, False), (INNER,))
    return list(itertools.starmap(Step, itertools.product(*axes)))


def _search(network: ResidualMLP, sources: dict[str, Tensor], steps: list[Step]) -> list[StepResult]:
    dtype = network.embed.weight.dtype
    sources = {name: credit.to(dtype) for name, credit in sources.items()}
    return line_search(network, X_SAME.to(dtype), Y_SAME, X_HELD.to(dtype), Y_HELD, sources, steps)


def _expected(network: ResidualMLP, sources: dict[str, Tensor], step: Step) -> StepResult:
    """One step from scratch: differentiate, step on a copy, and run every sample of both batches before and after."""
    before = slow.SlowNetwork(slow.parameters_of(network), network.residual_add)
    blocks = update_blocks(step.update_range, network.num_blocks)
    labels_same, labels_held, credit = Y_SAME.tolist(), Y_HELD.tolist(), sources[step.credits]
    gradients = slow.local_gradients(
        before,
        X_SAME,
        labels_same,
        credit,
        blocks,
        update_head=step.update_head,
        normalise=step.norm_mode == "norm",
        rule=step.rule.name,
        kappa=kappa_of(step.rule),
    )
    for name, gradient in gradients.items():
        bounded = gradient if step.clamp is None else gradient.clamp(-step.clamp, step.clamp)
        gradients[name] = bounded + step.weight_decay * before.p[name].detach()
    after = slow.step(before, gradients, step.eta, step.radius)
    (same_0, hits_0), (same_1, hits_1) = (slow.loss_and_accuracy(n, X_SAME, labels_same) for n in (before, after))
    (held_0, _), (held_1, _) = (slow.loss_and_accuracy(n, X_HELD, labels_held) for n in (before, after))
    sizes = [slow.rms(a).item() for layer in blocks for a in credit[layer]]
    return StepResult(same_0, same_1, same_1 - same_0, held_1 - held_0, hits_1 - hits_0, sum(sizes) / len(sizes))


def _assert_close(found: StepResult, expected: StepResult, rel: float, floor: float) -> None:
    for name in ("loss_before_same", "loss_after_same", "credit_rms"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=rel, abs=0), name
    for name in ("delta_loss_same", "delta_loss_held", "delta_acc_same"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=rel, abs=floor), name


@pytest.mark.parametrize("residual_add", [True, False])
def test_every_step_against_one_at_a_time(residual_add: bool) -> None:
    network, sources, steps = _network(residual_add), _sources(), _grid()
    expected = [_expected(network, sources, step) for step in steps]
    assert any(abs(result.delta_acc_same) > 0.1 for result in expected)
    assert {math.copysign(1, result.delta_loss_held) for result in expected} == {1, -1}

    for step, found, wanted in zip(steps, _search(network, sources, steps), expected, strict=True):
        assert _finite(wanted), step
        _assert_close(found, wanted, rel=1e-10, floor=1e-12)

    for step, found, wanted in zip(steps, _search(network.float(), sources, steps), expected, strict=True):
        if step.eta < 1:  # a step of 1 multiplies float32's rounding
            _assert_close(found, wanted, rel=1e-5, floor=1e-6)


@pytest.mark.parametrize("residual_add", [True, False])
def test_rules_clamp_and_trust_region_against_one_step_at_a_time(residual_add: bool) -> None:
    network, sources = _network(residual_add), _sources()
    axes: Any = ("one",), ("last1", "all"), ("raw", "norm"), (1e-3, 1.0), (True,), RULES
    settings: Any = (0.0, 0.3), (0.0,), (None, 0.05), (None, 0.01, 1.0)
    steps = list(itertools.starmap(Step, itertools.product(*axes, *settings)))
    found = _search(network, sources, steps)
    for step, result in zip(steps, found, strict=True):
        _assert_close(result, _expected(network, sources, step), rel=1e-9, floor=1e-12)
    assert len({round(result.loss_after_same, 9) for result in found}) > len(found) / 3


def test_a_step_in_a_trust_region_has_its_radius(monkeypatch: pytest.MonkeyPatch) -> None:
    network, sources = _network(), _sources()
    step = Step("one", "last2", "raw", 10.0, False, COSINE, weight_decay=0.1, radius=0.02)
    seen: list[Tensor] = []
    candidates = module._candidates

    def looked_at(*of: Any) -> Any:
        moved = [name for name in of[1] if name.startswith(("blocks.1.", "blocks.2."))]
        lengths = torch.stack([of[1][name].norm() for name in moved]).norm()
        seen.append(lengths * of[2])
        return candidates(*of)

    monkeypatch.setattr(module, "_candidates", looked_at)
    _search(network, sources, [step, step._replace(eta=1e-9)])
    (lengths,) = seen
    assert lengths[0].item() == pytest.approx(0.02)
    assert lengths[1].item() < 1e-6


def test_against_sgd_on_a_copy() -> None:
    network, sources = _network(), _sources()
    step = Step("one", "last2", "raw", 0.03, True, INNER)
    copied = copy.deepcopy(network).requires_grad_(True)
    _, hiddens = copied(X_SAME, return_hidden=True)
    loss = torch.nn.functional.cross_entropy(copied.head(hiddens[-1].detach()), Y_SAME)
    for layer in (1, 2):
        loss = loss + (copied.blocks[layer](hiddens[layer].detach()) * sources["one"][layer]).sum(-1).mean()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.optim.SGD(copied.parameters(), lr=0.03).step()
    (found,) = _search(network, sources, [step])
    after = torch.nn.functional.cross_entropy(copied(X_SAME), Y_SAME).item()
    assert found.loss_after_same == pytest.approx(after, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_step_s_numbers_do_not_depend_on_its_company(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    network, sources, steps = _network().to(dtype), _sources(), _grid()
    rel, floor = (1e-12, 1e-13) if dtype == torch.float64 else (1e-6, 1e-6)
    together = _search(network, sources, steps)
    shuffled = torch.randperm(len(steps), generator=generator(0, "test")).tolist()
    for position, result in zip(shuffled, _search(network, sources, [steps[i] for i in shuffled]), strict=True):
        _assert_close(result, together[position], rel, floor)
    for step, result in zip(steps, together, strict=True):
        _assert_close(_search(network, sources, [step])[0], result, rel, floor)
    monkeypatch.setattr(module, "CHUNK_BYTES", 1)
    for alone, result in zip(_search(network, sources, steps), together, strict=True):
        _assert_close(alone, result, rel, floor)


def test_a_step_that_blows_up_is_returned_as_it_is_and_spoils_no_other() -> None:
    network, sources = _network().float(), _sources()
    sane = [Step("one", "all", "raw", eta, True, INNER) for eta in ETAS]
    wild = Step("one", "all", "raw", 1e38, True, INNER)
    *found, blown = _search(network, sources, [*sane, wild])
    assert not math.isfinite(blown.loss_after_same)
    assert not math.isfinite(blown.delta_loss_same)
    assert math.isfinite(blown.loss_before_same)
    for result, alone in zip(found, _search(network, sources, sane), strict=True):
        _assert_close(result, alone, 1e-6, 1e-6)


def test_credits_that_are_not_finite_reach_their_own_results_only() -> None:
    network, sources = _network(), _sources()
    sources["bad"] = torch.full_like(sources["one"], math.nan)
    good, bad = Step("one", "last1", "norm", 0.01, False, INNER), Step("bad", "last1", "norm", 0.01, False, INNER)
    results = _search(network, sources, [bad, good, bad])
    assert all(math.isnan(results[i].delta_loss_same) and math.isnan(results[i].credit_rms) for i in (0, 2))
    _assert_close(results[1], _search(network, sources, [good])[0], 1e-12, 1e-13)


def test_a_step_of_zero_changes_nothing() -> None:
    for result in _search(_network(), _sources(), _grid((0.0,))):
        assert result.delta_loss_same == pytest.approx(0, abs=1e-14)
        assert result.delta_loss_held == pytest.approx(0, abs=1e-14)
        assert result.delta_acc_same == 0
        assert result.loss_after_same == pytest.approx(result.loss_before_same, rel=1e-14)


def test_results_are_repeated_bit_for_bit() -> None:
    network, sources, steps = _network().float(), _sources(), _grid()
    assert _search(network, sources, steps) == _search(network, sources, steps)


def test_the_oracle_descends_and_its_opposite_climbs() -> None:
    network = _network(perturbed=0.0)
    logits, hiddens = network(X_SAME, return_hidden=True)
    oracle = source("oracle_bp").credits(network, hiddens, logits, Y_SAME)
    ranges: tuple[Any, ...] = ("last1", "last2", "all")
    for update_range, norm_mode in itertools.product(ranges, ("raw", "norm")):
        mode: Any = norm_mode
        down, up = _search(
            network,
            {"oracle": oracle, "opposite": -oracle},
            [Step(name, update_range, mode, 1e-3, False, INNER) for name in ("oracle", "opposite")],
        )
        assert down.delta_loss_same < 0 < up.delta_loss_same
        assert down.loss_after_same < down.loss_before_same == up.loss_before_same
    (head,) = _search(network, {"nothing": 0 * oracle}, [Step("nothing", "last1", "raw", 1e-3, True, INNER)])
    assert head.delta_loss_same < 0


@pytest.mark.parametrize("num_blocks", [1, 2])
def test_networks_shorter_than_a_range(num_blocks: int) -> None:
    network, sources = _network(num_blocks=num_blocks), _sources(num_blocks)
    for step, found in zip(_grid(), _search(network, sources, _grid()), strict=True):
        _assert_close(found, _expected(network, sources, step), rel=1e-10, floor=1e-12)


def test_the_network_is_left_as_it_was() -> None:
    network = _network().requires_grad_(True)
    before = copy.deepcopy(network.state_dict())
    _search(network, _sources(), _grid())
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in network.parameters())


def test_no_steps_give_no_results() -> None:
    assert _search(_network(), _sources(), []) == []


def test_credits_that_are_not_given_are_named() -> None:
    with pytest.raises(KeyError, match="missing"):
        _search(_network(), _sources(), [Step("missing", "last1", "raw", 0.1, False, INNER)])


def _finite(result: StepResult) -> bool:
    return all(math.isfinite(value) for value in result)


# -- regularised steps ---------------------------------------------------------------------------------------------


def _regularised(network: ResidualMLP, sources: dict[str, Tensor], step: Step, seed: int) -> StepResult:
    """One step p - eta (gradient + sigma xi + lambda p), from scratch."""
    before = slow.SlowNetwork(slow.parameters_of(network), network.residual_add)
    blocks = update_blocks(step.update_range, network.num_blocks)
    labels_same, labels_held, credit = Y_SAME.tolist(), Y_HELD.tolist(), sources[step.credits]
    gradients = slow.local_gradients(
        before, X_SAME, labels_same, credit, blocks, update_head=step.update_head, normalise=step.norm_mode == "norm"
    )
    draws = generator(seed, "step/noise", 0)
    for name, p in before.p.items():
        if name.startswith("embed."):
            continue
        xi = torch.randn(p.shape, generator=draws).double()  # drawn whether the parameter is moved or not
        if name in gradients:
            gradients[name] = gradients[name] + step.noise * xi + step.weight_decay * p.detach()
    after = slow.step(before, gradients, step.eta)
    (same_0, hits_0), (same_1, hits_1) = (slow.loss_and_accuracy(n, X_SAME, labels_same) for n in (before, after))
    (held_0, _), (held_1, _) = (slow.loss_and_accuracy(n, X_HELD, labels_held) for n in (before, after))
    sizes = [slow.rms(a).item() for layer in blocks for a in credit[layer]]
    return StepResult(same_0, same_1, same_1 - same_0, held_1 - held_0, hits_1 - hits_0, sum(sizes) / len(sizes))


@pytest.mark.parametrize("residual_add", [True, False])
def test_weight_decay_and_noise_against_one_step_at_a_time(residual_add: bool) -> None:
    network, sources, seed = _network(residual_add), _sources(), 8
    axes: Any = (("one",), ("last1", "all"), ("raw", "norm"), (3e-2,), (True, False), (INNER,), (0.0, 0.7), (0.0, 0.4))
    steps = list(itertools.starmap(Step, itertools.product(*axes)))
    found = line_search(network, X_SAME, Y_SAME, X_HELD, Y_HELD, sources, steps, seed)
    changes = set()
    for step, result in zip(steps, found, strict=True):
        _assert_close(result, _regularised(network, sources, step, seed), rel=1e-10, floor=1e-12)
        changes.add(round(result.delta_loss_same, 9))
    assert len(changes) == len(steps)  # each of them changes what a step does


def test_the_noise_is_the_same_for_every_credit_and_step_size_and_follows_its_seed() -> None:
    network, sources = _network(), _sources()
    sources["nothing"] = 0 * sources["one"]

    def change(seed: int, **values: Any) -> float:
        options: dict[str, Any] = {
            "update_range": "all",
            "norm_mode": "raw",
            "eta": 0.01,
            "update_head": False,
            "rule": INNER,
        }
        step = Step("nothing", **{**options, "rule": INNER, "noise": 0.1, **values})
        return line_search(network, X_SAME, Y_SAME, X_HELD, Y_HELD, sources, [step], seed)[0].delta_loss_same

    assert change(0) == change(0) != change(1)
    # Ten times the scale and a tenth of the step is the same step.
    assert change(0, eta=0.001, noise=1.0) == pytest.approx(change(0), rel=1e-9)
    assert change(0, noise=0.0) == pytest.approx(0, abs=1e-14)


def test_weight_decay_alone_shrinks_what_is_updated() -> None:
    network, sources = _network(), {"nothing": torch.zeros(L, 5, WIDTH, dtype=torch.float64)}
    step = Step("nothing", "last1", "raw", 0.1, update_head=False, rule=INNER, weight_decay=0.5)
    shrunk = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in shrunk.blocks[-1].parameters():
            parameter.mul_(1 - 0.1 * 0.5)
    (found,) = _search(network, sources, [step])
    after = torch.nn.functional.cross_entropy(shrunk(X_SAME), Y_SAME).item()
    assert found.loss_after_same == pytest.approx(after, rel=1e-12)
