"""Credits and their quality in float64: one layer, one nudge at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from recompute_network import (
    Tensors,
    cross_entropy,
    depth,
    estimator_output,
    head,
    hiddens,
    images_in_file_order,
    loss_gradient,
    losses_from,
    output_error,
    stream,
)
from torch import Tensor

NUDGES = {"nudge_0_001": 0.001, "nudge_0_003": 0.003, "nudge_0_01": 0.01}


def credit(params: Mapping[str, Any], p: Tensors, layer: int, x: Tensor, y: Tensor, extra: Tensors) -> Tensor:
    """a_layer (b, d) of a batch; ``extra`` holds the feedback matrices or the estimator."""
    add = params["residual_add"]
    levels = [h.detach() for h in hiddens(p, x, add)]
    method, t = params["method"], layer / depth(p)
    error = output_error(p, levels[-1], y)
    if method == "oracle_bp":
        gradient = loss_gradient(p, layer, levels[layer], y, add)
        return gradient / len(y) if params["oracle_reduction"] == "mean" else gradient
    if method == "dfa":
        return error @ extra[f"B.{layer}"].T
    h = levels[layer].requires_grad_()
    if method == "vec":
        return estimator_output(extra, h, t, error).detach()
    if method == "state_bridge":
        predicted = estimator_output(extra, h, t, error)
        return torch.autograd.grad(cross_entropy(head(p, predicted), y).sum(), h)[0]
    assert method == "scalar_cb"
    s = error if params["cb_source"] == "e_T" else loss_gradient(p, depth(p), levels[-1], y, add)
    return torch.autograd.grad(estimator_output(extra, h, t, s).sum(), h)[0]


def rms(a: Tensor) -> Tensor:
    size: Tensor = torch.sqrt((a**2).mean(-1, keepdim=True)) + 1e-6
    return size


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Of each sample, over the last dim."""
    unit_a = a / a.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    unit_b = b / b.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    product: Tensor = unit_a * unit_b
    return product.sum(-1)


def gamma(params: Mapping[str, Any], p: Tensors, layer: int, data: Tensors, extra: Tensors) -> float:
    """Mean cosine with the true gradient, over up to ten test batches."""
    size, add = params["batch_size"], params["residual_add"]
    means = []
    for first in range(0, min(10 * size, len(data["y_test"])), size):
        x, y = images_in_file_order(data, first, size)
        true = loss_gradient(p, layer, hiddens(p, x, add)[layer], y, add)
        means.append(cosine(credit(params, p, layer, x, y, extra), true).mean().item())
    return sum(means) / len(means)


def slopes(p: Tensors, layer: int, h: Tensor, y: Tensor, v: Tensor, residual_add: bool) -> Tensor:
    """Central differences of each sample's loss along v (b, d), run forward from h_layer."""
    eps = 1e-3
    ahead = losses_from(p, layer, h + eps * v, y, residual_add)
    return (ahead - losses_from(p, layer, h - eps * v, y, residual_add)) / (2 * eps)


def rho(params: Mapping[str, Any], p: Tensors, layer: int, x: Tensor, y: Tensor, extra: Tensors) -> float | None:
    """Pearson correlation, over all samples and 32 directions v of unit length, of ⟨a, v⟩ with the slope along v."""
    add = params["residual_add"]
    h, a = hiddens(p, x, add)[layer], credit(params, p, layer, x, y, extra)
    draws = stream(params["seed"] if params["probe_seed"] is None else params["probe_seed"], "rho", layer)
    predicted, measured = [], []
    for gaussian in torch.randn((32, *h.shape), generator=draws).double():
        v = gaussian / (torch.sqrt((gaussian**2).sum(-1, keepdim=True)) + 1e-8)
        predicted.append((a * v).sum(-1))
        measured.append(slopes(p, layer, h, y, v, add))
    return pearson(torch.cat(predicted), torch.cat(measured))


def pearson(a: Tensor, b: Tensor) -> float | None:
    """Null where one side does not vary."""
    a, b = a - a.mean(), b - b.mean()
    spread = math.sqrt((a**2).sum().item() * (b**2).sum().item())
    return (a * b).sum().item() / spread if spread > 0 else None


def nudge(params: Mapping[str, Any], p: Tensors, layer: int, x: Tensor, y: Tensor, extra: Tensors, eta: float) -> float:
    """Mean change of the loss when h_layer moves by η against the credit's direction."""
    add = params["residual_add"]
    h, a = hiddens(p, x, add)[layer], credit(params, p, layer, x, y, extra)
    moved = h - eta * a / a.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    return (losses_from(p, layer, moved, y, add) - losses_from(p, layer, h, y, add)).mean().item()


def pred_error(params: Mapping[str, Any], p: Tensors, layer: int, data: Tensors, e: Tensors) -> float:
    """Mean ‖P(h_layer, t, e_T) - h_L‖² over the whole test set."""
    x, y = images_in_file_order(data, 0, len(data["y_test"]))
    levels = hiddens(p, x, params["residual_add"])
    predicted = estimator_output(e, levels[layer], layer / depth(p), output_error(p, levels[-1], y))
    return ((predicted - levels[-1]) ** 2).sum(-1).mean().item()
