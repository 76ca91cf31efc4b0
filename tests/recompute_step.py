"""Local steps in float64: the gradient of one block's own loss at a time, regularised, and one plain step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from recompute_credit import cosine, credit, rms
from recompute_layers import block_parameters, head_parameters
from recompute_network import Tensors, branch, cross_entropy, depth, head, hiddens, stream
from torch import Tensor


def blocks_of(update_range: str, p: Tensors) -> list[int]:
    return list(range(depth(p)))[{"last1": -1, "last2": -2, "all": 0}[update_range] :]


def local_gradients(
    params: Mapping[str, Any],
    p: Tensors,
    x: Tensor,
    y: Tensor,
    extra: Tensors,
    blocks: Sequence[int],
    *,
    update_head: bool,
    normalised: bool,
    rule: str = "inner_product",
    kappa: float | None = None,
) -> dict[str, Tensor]:
    """The gradient of every parameter that steps, by name."""
    levels = [h.detach() for h in hiddens(p, x, params["residual_add"])]
    found: dict[str, Tensor] = {}
    for block in blocks:
        a = credit(params, p, block, x, y, extra)
        if normalised or rule == "target_shift":
            a = a / rms(a)
        leaves = _leaves(p, block_parameters(p, block))
        out = branch({**p, **leaves}, block, levels[block])
        if rule == "inner_product":
            value = (out * a).sum(-1).mean()
        elif rule == "cosine":
            value = cosine(out, a).mean()
        else:
            assert rule == "target_shift"
            assert kappa is not None
            prediction = levels[block] + out if params["residual_add"] else out
            value = 0.5 * ((prediction - (levels[block + 1] - kappa * a)) ** 2).sum(-1).mean()
        found |= zip(leaves, torch.autograd.grad(value, list(leaves.values())), strict=True)
    if update_head:
        leaves = _leaves(p, head_parameters(p))
        value = cross_entropy(head({**p, **leaves}, levels[-1]), y).mean()
        found |= zip(leaves, torch.autograd.grad(value, list(leaves.values())), strict=True)
    return found


def _leaves(p: Tensors, names: Sequence[str]) -> dict[str, Tensor]:
    return {name: p[name].detach().clone().requires_grad_() for name in names}


def step_noise(p: Tensors, seed: int, step: int) -> dict[str, Tensor]:
    """ξ of one step, for every parameter but the embedding's."""
    generator = stream(seed, "step/noise", step)
    names = [name for block in range(depth(p)) for name in block_parameters(p, block)] + head_parameters(p)
    return {name: torch.randn(p[name].shape, generator=generator).double() for name in names}


def take_step(
    params: Mapping[str, Any], p: Tensors, gradients: Tensors, eta: float, *, step: int = 0, clamp: float | None = None
) -> dict[str, Tensor]:
    """p - η g with g = clamp(∇ + σ ξ) + λ p, of the parameters that have a gradient; the others as they are.

    With ``step_radius`` in ``params``, a longer step is scaled to that length.
    """
    seed = params["seed"] if params["probe_seed"] is None else params["probe_seed"]
    sigma, decay = params.get("step_noise", 0.0), params.get("step_weight_decay", 0.0)
    xi = step_noise(p, seed, step)
    change: dict[str, Tensor] = {}
    for name, gradient in gradients.items():
        g = gradient + sigma * xi[name]
        if clamp is not None:
            g = g.clamp(-clamp, clamp)
        change[name] = -eta * (g + decay * p[name])
    radius = params.get("step_radius")
    length = torch.cat([part.flatten() for part in change.values()]).norm().item()
    shortened = radius / length if radius is not None and length > radius else 1.0
    return {**p, **{name: p[name] + shortened * part for name, part in change.items()}}
