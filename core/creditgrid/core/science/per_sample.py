"""Per-sample measures that several modules share, each formula once."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from creditgrid.core.science.functional import Layers


def rms(a: Tensor) -> Tensor:
    """sqrt(mean(a², -1)) + 1e-6 over the last dim: (…, d) -> (…). The floor prevents a division by 0."""
    return a.square().mean(-1).sqrt() + 1e-6


def normalise_credit(credit: Tensor) -> Tensor:
    """a / RMS(a) per sample, RMS(a) = sqrt(mean(a², -1)) + 1e-6: (…, d) -> (…, d)."""
    return credit / rms(credit).unsqueeze(-1)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """⟨a, b⟩/(‖a‖ ‖b‖) over the last dim: (…, d), (…, d) -> (…); 0 where one is 0."""
    return (unit(a) * unit(b)).sum(-1)


def unit(a: Tensor) -> Tensor:
    """a/‖a‖₂ over the last dim, however short a is; 0 stays 0: (…, d) -> (…, d)."""
    return F.normalize(a, dim=-1, eps=torch.finfo(a.dtype).tiny)


def unit_directions(drawn: Tensor) -> Tensor:
    """v/(‖v‖₂ + 1e-8) of Gaussian draws v over the last dim: directions of unit length, (…, d) -> (…, d)."""
    length: Tensor = torch.linalg.vector_norm(drawn, dim=-1, keepdim=True)
    return drawn / (length + 1e-8)


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Unreduced cross-entropy in nats of logits (…, b, C) with labels y int64 (b,): (…, b), in the logits' dtype."""
    leading = logits.shape[:-1]
    losses = F.cross_entropy(logits.flatten(0, -2), y.expand(leading).flatten(), reduction="none")
    return losses.view(leading)


def correct(logits: Tensor, y: Tensor) -> Tensor:
    """Whether the largest logit is the label's: logits (…, b, C), y int64 (b,) -> bool (…, b)."""
    return logits.argmax(-1) == y


def central_differences(network: Layers, h: Tensor, y: Tensor, layer: int, directions: Tensor, *, eps: float) -> Tensor:
    """(CE(h + ε v) - CE(h - ε v))/2ε of each sample's loss run forward from layer l = ``layer``: (M, b).

    ``h`` are h_l (b, d), ``directions`` v (M, b, d), ``y`` int64 (b,).
    """
    shifted = torch.stack((torch.add(h, directions, alpha=eps), torch.add(h, directions, alpha=-eps)))
    losses = cross_entropy(network.forward_from_layer(shifted, layer), y)
    return (losses[0] - losses[1]) / (2 * eps)
