"""The rows of every experiment's cell, from its parameters and its artifacts by role, in float64.

Every function takes a cell's parameters and {role: {tensor's name: array}}, and returns the measured columns.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any, TypeAlias

import torch
from recompute_credit import NUDGES, cosine, credit, gamma, nudge, pred_error, rho, rms
from recompute_network import (
    Arrays,
    Tensors,
    accuracy,
    depth,
    doubles,
    hiddens,
    images_in_file_order,
    loss,
    loss_gradient,
    network,
)
from recompute_step import blocks_of, local_gradients, take_step
from torch import Tensor

Params: TypeAlias = Mapping[str, Any]
Artifacts: TypeAlias = Mapping[str, Arrays]
Row: TypeAlias = dict[str, float | None]

SEARCHED = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)


def linesearch_rows(params: Params, artifacts: Artifacts) -> list[Row]:
    p, probe, extra = network(params, artifacts["checkpoint"]), doubles(artifacts["probe"]), _extra(artifacts)
    x, y, add = probe["x_same"], probe["y_same"], params["residual_add"]
    blocks = blocks_of(params["update_range"], p)
    choice = params["update_head"]
    gradients = local_gradients(
        params,
        p,
        x,
        y,
        extra,
        blocks,
        update_head=choice == "always" or (choice == "auto" and params["update_range"] != "last1"),
        normalised=params["norm_mode"] == "norm",
        rule=params["rule"],
        kappa=params["kappa"],
    )
    stepped = take_step(params, p, gradients, params["eta"], clamp=_bound(params))
    sizes = [rms(credit(params, p, block, x, y, extra)).mean().item() for block in blocks]
    before, after = loss(p, x, y, add), loss(stepped, x, y, add)
    return [
        {
            "loss_before_same": before,
            "loss_after_same": after,
            "delta_loss_same": after - before,
            "delta_loss_held": _held(stepped, probe, add) - _held(p, probe, add),
            "delta_acc_same": accuracy(stepped, x, y, add) - accuracy(p, x, y, add),
            "credit_rms": sum(sizes) / len(sizes),
        }
    ]


def snapshot_time_rows(params: Params, artifacts: Artifacts) -> list[Row]:
    p, probe, extra = network(params, artifacts["checkpoint"]), doubles(artifacts["probe"]), _extra(artifacts)
    data, add = doubles(artifacts["data"]), params["residual_add"]
    blocks = blocks_of(params["update_range"], p)

    def direction(now: Tensors, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        return local_gradients(params, now, x, y, extra, blocks, update_head=True, normalised=False)

    def change(now: Tensors) -> tuple[float, float]:
        same = loss(now, probe["x_same"], probe["y_same"], add) - loss(p, probe["x_same"], probe["y_same"], add)
        return same, _held(now, probe, add) - _held(p, probe, add)

    first = direction(p, probe["x_same"], probe["y_same"])
    etas = SEARCHED if params["eta"] is None else (params["eta"],)
    after_one = {eta: change(take_step(params, p, first, eta)) for eta in etas}
    best = min(etas, key=lambda eta: after_one[eta][0])
    now: Tensors = p
    for x, y in list(zip(probe["x_steps"], probe["y_steps"], strict=True))[:5]:
        now = take_step(params, now, direction(now, x, y), best)
    row: Row = {"best_eta": best}
    for k, (same, held) in {1: after_one[best], 5: change(now)}.items():
        row |= {
            f"dl_same_{k}": same,
            f"dl_held_{k}": held,
            f"pur_{k}": -held / (-same + 1e-12) if same < 0 else None,
        }

    updates = []
    for x, y in list(zip(probe["x_extra"], probe["y_extra"], strict=True))[: params["extra_batches"]]:
        updates.append(torch.cat([gradient.flatten() for gradient in direction(p, x, y).values()]))
    cosines = [cosine(u, v).item() for u, v in itertools.combinations(updates, 2)]
    centre = torch.stack(updates).mean(0)
    row["update_cos"] = sum(cosines) / len(cosines) if cosines else None
    row["update_var"] = sum(((u - centre) ** 2).sum().item() for u in updates) / len(updates)
    row["test_accuracy"] = accuracy(p, *images_in_file_order(data, 0, len(data["y_test"])), add)
    return [row]


def exploitability_rows(params: Params, artifacts: Artifacts) -> list[Row]:
    p, probe, extra = network(params, artifacts["checkpoint"]), doubles(artifacts["probe"]), _extra(artifacts)
    data, add = doubles(artifacts["data"]), params["residual_add"]
    x, y = {"held": (probe["x_test"], probe["y_test"]), "same": (probe["x_same"], probe["y_same"])}[params["eval"]]
    layers = range(depth(p))
    now: Tensors = p
    for step in range(params["k"]):
        gradients = local_gradients(
            params,
            now,
            probe["x_steps"][step],
            probe["y_steps"][step],
            extra,
            layers,
            update_head=True,
            normalised=params["norm_mode"] == "norm",
            rule=params["rule"],
            kappa=params["kappa"],
        )
        now = take_step(params, now, gradients, params["eta"], step=step, clamp=_bound(params))
    before, after = loss(p, x, y, add), loss(now, x, y, add)
    on_first = probe["x_test"], probe["y_test"]
    return [
        {
            "loss_before": before,
            "loss_after": after,
            "delta_loss": after - before,
            "gamma": _mean([gamma(params, p, layer, data, extra) for layer in layers]),
            "rho": _mean([rho(params, p, layer, *on_first, extra) for layer in layers]),
        }
    ]


def credit_recovery_rows(params: Params, artifacts: Artifacts) -> list[Row]:
    p, probe, extra = network(params, artifacts["checkpoint"]), doubles(artifacts["probe"]), _extra(artifacts)
    data = doubles(artifacts["data"])
    x, y = probe["x_test"], probe["y_test"]
    rows: list[Row] = []
    for layer in range(depth(p)):
        row: Row = {"gamma": gamma(params, p, layer, data, extra), "rho": rho(params, p, layer, x, y, extra)}
        row |= {name: nudge(params, p, layer, x, y, extra, eta) for name, eta in NUDGES.items()}
        bridge = params["method"] == "state_bridge"
        row["pred_error"] = pred_error(params, p, layer, data, extra) if bridge else None
        rows.append(row)
    means = {f"{name}_mean": _mean([row[name] for row in rows]) for name in rows[0]}
    return [{"layer": layer, **row, **means} for layer, row in enumerate(rows)]


def dynamics_rows(params: Params, artifacts: Artifacts) -> list[Row]:
    data, add = doubles(artifacts["data"]), params["residual_add"]
    x, y = images_in_file_order(data, 0, 1024)
    last = params["train_epochs"]
    rows: list[Row] = []
    for epoch in sorted({*range(0, last + 1, params["logs_every"]), last}):
        p = network(params, artifacts[f"epoch_{epoch}"])
        levels = hiddens(p, x, add)
        gradients = [loss_gradient(p, layer, h, y, add) / len(y) for layer, h in enumerate(levels)]
        alignment = None
        if params["train_rule"] == "dfa":
            dfa, matrices = {**params, "method": "dfa"}, doubles(artifacts["feedback"])
            alignment = _mean(
                [
                    cosine(credit(dfa, p, layer, x, y, matrices), gradients[layer]).mean().item()
                    for layer in range(depth(p))
                ]
            )
        shared = {"gamma_dfa": alignment, "accuracy": accuracy(p, x, y, add), "loss": loss(p, x, y, add)}
        for layer, (h, gradient) in enumerate(zip(levels, gradients, strict=True)):
            rows.append(
                {
                    "epoch": epoch,
                    "layer": layer,
                    "h_norm": _median(h.norm(dim=-1).tolist()),
                    "grad_norm": _median(gradient.norm(dim=-1).tolist()),
                    "grad_frobenius": gradient.norm().item(),
                    **shared,
                }
            )
    return rows


def _bound(params: Params) -> float | None:
    return None if params["clamp"] in (None, "none") else float(params["clamp"])


def _extra(artifacts: Artifacts) -> dict[str, Tensor]:
    return doubles(artifacts.get("estimator") or artifacts.get("feedback") or {})


def _held(p: Tensors, probe: Tensors, residual_add: bool) -> float:
    return loss(p, probe["x_held"], probe["y_held"], residual_add)


def _mean(values: list[float | None]) -> float | None:
    """Over the layers; null where one of them is."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def _median(values: list[float]) -> float:
    """The mean of the two middle values where their number is even."""
    ordered = sorted(values)
    return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
