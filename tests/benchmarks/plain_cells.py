"""One cell of an experiment from scratch, by the plain loops of ``plain_measuring``: its rows."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from creditgrid.core.science.network import ResidualMLP

from .plain_measuring import (
    Batch,
    Source,
    blocks_of,
    credit_of,
    gamma,
    local_loss,
    local_step,
    loss_of,
    nudge,
    prediction_error,
    rho,
    rms,
)

Rows: TypeAlias = list[dict[str, float | None]]

SEARCHED = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
STEPS = 5
NUDGES = {"nudge_0_001": 0.001, "nudge_0_003": 0.003, "nudge_0_01": 0.01}


def line_search_cell(
    network: ResidualMLP,
    source: Source,
    probe: Mapping[str, Tensor],
    tests: Sequence[Batch],
    params: Mapping[str, Any],
) -> Rows:
    (x, y), held = _batches(probe)
    stepped, layers = _copy(network), blocks_of(network, params["update_range"])
    with torch.no_grad():
        logits, hiddens = stepped(x, return_hidden=True)
        before, accuracy = F.cross_entropy(logits, y).item(), _accuracy(logits, y)
    before_held = loss_of(stepped, held)
    credits = credit_of(source, stepped, hiddens, y, layers)
    optimizer = torch.optim.SGD(stepped.parameters(), lr=params["eta"])
    update_head = params["update_range"] != "last1"
    loss = local_loss(stepped, hiddens, credits, y, layers, norm_mode=params["norm_mode"], update_head=update_head)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    with torch.no_grad():
        logits = stepped(x)
        after = F.cross_entropy(logits, y).item()
    return [
        {
            "loss_before_same": before,
            "loss_after_same": after,
            "delta_loss_same": after - before,
            "delta_loss_held": loss_of(stepped, held) - before_held,
            "delta_acc_same": _accuracy(logits, y) - accuracy,
            "credit_rms": sum(rms(a).mean().item() for a in credits) / len(credits),
        }
    ]


def exploitability_cell(
    network: ResidualMLP,
    source: Source,
    probe: Mapping[str, Tensor],
    tests: Sequence[Batch],
    params: Mapping[str, Any],
) -> Rows:
    layers = range(network.num_blocks)
    gammas = gamma(network, source, tests[:10])
    rhos = rho(network, source, tests[0], params["seed"])
    measured = tests[0] if params["eval"] == "held" else _batches(probe)[0]
    stepped = _copy(network)
    before = loss_of(stepped, measured)
    options = {name: params[name] for name in ("norm_mode", "rule", "kappa", "clamp")}
    for step in range(params["k"]):
        batch = probe["x_steps"][step], probe["y_steps"][step]
        local_step(stepped, batch, source, layers, params["eta"], **options)
    after = loss_of(stepped, measured)
    return [
        {
            "loss_before": before,
            "loss_after": after,
            "delta_loss": after - before,
            "gamma": _mean(gammas),
            "rho": _mean(rhos),
        }
    ]


def snapshot_time_cell(
    network: ResidualMLP,
    source: Source,
    probe: Mapping[str, Tensor],
    tests: Sequence[Batch],
    params: Mapping[str, Any],
) -> Rows:
    same, held = _batches(probe)
    layers = blocks_of(network, params["update_range"])
    before_same, before_held = loss_of(network, same), loss_of(network, held)
    tried = []
    for eta in SEARCHED:
        stepped = _copy(network)
        local_step(stepped, same, source, layers, eta)
        tried.append((loss_of(stepped, same) - before_same, loss_of(stepped, held) - before_held, eta))
    same_1, held_1, eta = min(tried)

    stepped = _copy(network)
    for step in range(STEPS):
        local_step(stepped, (probe["x_steps"][step], probe["y_steps"][step]), source, layers, eta)
    same_5, held_5 = loss_of(stepped, same) - before_same, loss_of(stepped, held) - before_held

    directions, still = [], _copy(network)
    for batch in zip(probe["x_extra"][: params["extra_batches"]], probe["y_extra"], strict=False):
        local_step(still, batch, source, layers, 0.0)
        directions.append(torch.cat([p.grad.flatten() for p in still.parameters() if p.grad is not None]))
    mean = torch.stack(directions).mean(0)
    return [
        {
            "test_accuracy": _test_accuracy(network, tests),
            "best_eta": eta,
            "dl_same_1": same_1,
            "dl_held_1": held_1,
            "pur_1": -held_1 / (-same_1 + 1e-12) if same_1 < 0 else None,
            "dl_same_5": same_5,
            "dl_held_5": held_5,
            "pur_5": -held_5 / (-same_5 + 1e-12) if same_5 < 0 else None,
            "update_cos": _mean(
                [F.cosine_similarity(u, v, dim=0).item() for u, v in itertools.combinations(directions, 2)]
            ),
            "update_var": _mean([(u - mean).square().sum().item() for u in directions]),
        }
    ]


def credit_recovery_cell(
    network: ResidualMLP,
    source: Source,
    probe: Mapping[str, Tensor],
    tests: Sequence[Batch],
    params: Mapping[str, Any],
) -> Rows:
    columns = {
        "gamma": gamma(network, source, tests[:10]),
        "rho": rho(network, source, tests[0], params["seed"]),
        **{name: nudge(network, source, tests[0], eta) for name, eta in NUDGES.items()},
    }
    if source.method == "state_bridge" and source.estimator is not None:
        columns["pred_error"] = prediction_error(network, source.estimator, tests)
    return [
        {"layer": layer, **{name: values[layer] for name, values in columns.items()}}
        for layer in range(network.num_blocks)
    ]


def _copy(network: ResidualMLP) -> ResidualMLP:
    return copy.deepcopy(network).requires_grad_(True)


def _batches(probe: Mapping[str, Tensor]) -> tuple[Batch, Batch]:
    return (probe["x_same"], probe["y_same"]), (probe["x_held"], probe["y_held"])


def _accuracy(logits: Tensor, y: Tensor) -> float:
    return (logits.argmax(-1) == y).float().mean().item()


def _test_accuracy(network: ResidualMLP, tests: Sequence[Batch]) -> float:
    right = images = 0
    with torch.no_grad():
        for x, y in tests:
            right += int((network(x).argmax(-1) == y).sum())
            images += len(y)
    return right / images


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
