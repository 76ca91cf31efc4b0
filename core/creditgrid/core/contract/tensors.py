"""How two tensors are compared, and how one is described in a message."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal to the last bit; NaN equals NaN."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return bool(
        torch.equal(a, b)
        or (
            a.is_floating_point()
            and torch.equal(a.nan_to_num(0), b.nan_to_num(0))
            and torch.equal(a.isnan(), b.isnan())
        )
    )


def difference(a: Tensor, b: Tensor) -> float:
    """The largest difference of two tensors, relative to the largest number of the second; infinite if not finite."""
    scale = b.abs().max().item() or 1.0
    apart = (a - b).abs().max().item() / scale
    return apart if math.isfinite(apart) else math.inf


def described(tensor: Tensor) -> str:
    """The shape and the type, as in ``(3, 6, 8) float32``."""
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
