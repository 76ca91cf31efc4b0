"""A line-search row, computed again from its downloaded artifacts alone: float64, one cell at a time, nothing shared.

Written from the formulas and the tensor names; imports nothing of CreditGrid.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

Arrays = Mapping[str, np.ndarray[Any, Any]]


def doubles(arrays: Arrays) -> dict[str, Tensor]:
    """Floats as float64, labels as they are."""
    return {
        name: torch.from_numpy(np.array(a)).double() if a.dtype == np.float32 else torch.from_numpy(np.array(a))
        for name, a in arrays.items()
    }


def layer_norm(h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    mean = h.mean(-1, keepdim=True)
    variance = ((h - mean) ** 2).mean(-1, keepdim=True)
    return (h - mean) / torch.sqrt(variance + 1e-5) * weight + bias


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def branch(p: Mapping[str, Tensor], block: int, h: Tensor) -> Tensor:
    name = f"blocks.{block}"
    inner = layer_norm(h, p[f"{name}.ln.weight"], p[f"{name}.ln.bias"])
    inner = gelu(inner @ p[f"{name}.w1.weight"].T + p[f"{name}.w1.bias"])
    return inner @ p[f"{name}.w2.weight"].T + p[f"{name}.w2.bias"]


def head(p: Mapping[str, Tensor], h: Tensor) -> Tensor:
    return layer_norm(h, p["out_ln.weight"], p["out_ln.bias"]) @ p["out_head.weight"].T + p["out_head.bias"]


def depth(p: Mapping[str, Tensor]) -> int:
    return len({name.split(".")[1] for name in p if name.startswith("blocks.")})


def hiddens(p: Mapping[str, Tensor], x: Tensor, residual_add: bool = True) -> list[Tensor]:
    h = [x @ p["embed.weight"].T + p["embed.bias"]]
    for block in range(depth(p)):
        step = branch(p, block, h[-1])
        h.append(h[-1] + step if residual_add else step)
    return h


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    return torch.logsumexp(logits, -1) - logits[torch.arange(len(y)), y]


def loss(p: Mapping[str, Tensor], x: Tensor, y: Tensor, residual_add: bool) -> Tensor:
    return cross_entropy(head(p, hiddens(p, x, residual_add)[-1]), y).mean()


def estimator_output(e: Mapping[str, Tensor], h: Tensor, t: float, s: Tensor) -> Tensor:
    frequencies = torch.tensor([math.exp(-math.log(10000) * i / 16) for i in range(16)], dtype=torch.float64)
    time = torch.cat([torch.sin(t * frequencies), torch.cos(t * frequencies)]).expand(len(h), 32)
    z = torch.cat([layer_norm(h, e["ln.weight"], e["ln.bias"]), time, s], -1)
    for index in (0, 2, 4):
        z = gelu(z @ e[f"net.{index}.weight"].T + e[f"net.{index}.bias"])
    return z @ e["net.6.weight"].T + e["net.6.bias"]


def credit(
    row: Mapping[str, Any], p: Mapping[str, Tensor], block: int, x: Tensor, y: Tensor, extra: Mapping[str, Tensor]
) -> Tensor:
    """a_l of one block on the batch; ``extra`` holds the feedback matrices or the estimator."""
    levels = hiddens(p, x, row["residual_add"])
    h = levels[block].detach().requires_grad_()
    logits = head(p, levels[-1])
    error = (torch.softmax(logits, -1) - torch.nn.functional.one_hot(y, logits.shape[-1])).detach()
    if row["method"] == "dfa":
        return error @ extra[f"B.{block}"].T
    if row["method"] == "oracle_bp":
        z = h
        for later in range(block, depth(p)):
            z = z + branch(p, later, z) if row["residual_add"] else branch(p, later, z)
        per_sample = cross_entropy(head(p, z), y)
        total = per_sample.mean() if row["oracle_reduction"] == "mean" else per_sample.sum()
        return torch.autograd.grad(total, h)[0]
    t = block / depth(p)
    if row["method"] == "vec":
        return estimator_output(extra, h, t, error).detach()
    s = error
    if row["cb_source"] == "delta_L":
        last = levels[-1].detach().requires_grad_()
        s = torch.autograd.grad(cross_entropy(head(p, last), y).sum(), last)[0]
    return torch.autograd.grad(estimator_output(extra, h, t, s).sum(), h)[0]


def linesearch_row(row: Mapping[str, Any], checkpoint: Arrays, probe: Arrays, extra: Arrays | None) -> dict[str, float]:
    """The measured columns of ``row``."""
    p, batches, more = doubles(checkpoint), doubles(probe), doubles(extra or {})
    x, y = batches["x_same"], batches["y_same"]
    add = row["residual_add"]
    blocks = list(range(depth(p)))[{"last1": -1, "last2": -2, "all": 0}[row["update_range"]] :]
    steps_head = row["update_head"] == "always" or (row["update_head"] == "auto" and row["update_range"] != "last1")
    levels = [h.detach() for h in hiddens(p, x, add)]
    stepped = dict(p)
    sizes = []
    for block in blocks:
        a = credit(row, p, block, x, y, more)
        size = torch.sqrt((a**2).mean(-1, keepdim=True)) + 1e-6
        sizes.append(size.mean().item())
        if row["norm_mode"] == "norm":
            a = a / size
        _step(
            p,
            stepped,
            f"blocks.{block}.",
            row["eta"],
            lambda q, b=block, a=a: (branch(q, b, levels[b]) * a).sum(-1).mean(),
        )
    if steps_head:
        _step(p, stepped, "out_", row["eta"], lambda q: cross_entropy(head(q, levels[-1]), y).mean())
    held = batches["x_held"], batches["y_held"]
    before, after = loss(p, x, y, add).item(), loss(stepped, x, y, add).item()
    return {
        "loss_before_same": before,
        "loss_after_same": after,
        "delta_loss_same": after - before,
        "delta_loss_held": loss(stepped, *held, add).item() - loss(p, *held, add).item(),
        "delta_acc_same": _accuracy(stepped, x, y, add) - _accuracy(p, x, y, add),
        "credit_rms": sum(sizes) / len(sizes),
    }


def _step(p: Mapping[str, Tensor], stepped: dict[str, Tensor], prefix: str, eta: float, of: Any) -> None:
    names = [name for name in p if name.startswith(prefix)]
    leaves = {name: p[name].detach().clone().requires_grad_() for name in names}
    gradients = torch.autograd.grad(of({**p, **leaves}), list(leaves.values()))
    for name, gradient in zip(names, gradients, strict=True):
        stepped[name] = p[name] - eta * gradient


def _accuracy(p: Mapping[str, Tensor], x: Tensor, y: Tensor, add: bool) -> float:
    return (head(p, hiddens(p, x, add)[-1]).argmax(-1) == y).double().mean().item()
