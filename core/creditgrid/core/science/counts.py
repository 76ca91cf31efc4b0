"""What the parts of the protocols cost, from the shape of a network: what cost models of methods are made of.

Each function returns the `Work` of what it is named after, in single precision. Notation: b samples, input dimension D,
n elements of a hidden state, L blocks, C classes. Matrix products are counted exactly. The counts of launches were
taken from torch for the residual MLP, and element-wise functions count by their time relative to a sum of two tensors.
It imports no torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

from creditgrid.core.units.shape import Shape
from creditgrid.core.work import Work

WIDTH, TIME_DIMS = 256, 32  # of an estimator, as in ``estimators``, which imports torch
PIXEL = 24.0
"""Elements for a pixel of a training batch: drawn, cropped, flipped and normalised."""
GELU, NORM, RANDN, ADAM = 3.0, 3.0, 25.0, 5.0
"""Elements for each number: forward passes of GELU and LayerNorm (backward twice and once), a draw, and Adam's step."""

# -- networks --------------------------------------------------------------------------------------------------------


def branches(shape: Shape, samples: float, blocks: float) -> Work:
    """A forward pass of some blocks, without a gradient."""
    elements = samples * blocks * shape.hidden * (NORM + GELU + 2)
    return Work(8 * blocks, samples * blocks * shape.branch_flops, elements)


def head(shape: Shape, samples: float) -> Work:
    """The head on terminal states, and its cross-entropy."""
    return Work(12, samples * shape.head_flops, samples * (shape.hidden * NORM + 6 * shape.classes))


@lru_cache(4096)
def forward(shape: Shape, samples: float) -> Work:
    """Logits of images, with the hidden states."""
    embedded = Work(4, samples * shape.embed_flops, samples * shape.hidden)
    return Work.total(embedded, branches(shape, samples, shape.blocks), head(shape, samples))


def terminal_gradient(shape: Shape, samples: float) -> Work:
    """δ_L: the head forward and backward to its input."""
    return head(shape, samples).plus(Work(15, samples * shape.head_flops, samples * shape.hidden * NORM))


def backprop(shape: Shape, samples: float, blocks: float) -> Work:
    """The gradient at the last ``blocks`` layers, from hidden states that are known."""
    points = samples * blocks
    back = Work(25 * blocks, points * shape.branch_flops, points * shape.hidden * 14)
    return Work.total(terminal_gradient(shape, samples), branches(shape, samples, blocks), back)


# -- the estimator of the shipped methods ----------------------------------------------------------------------------


class Net(NamedTuple):
    """The shape of an estimator: width d of the hidden states, dimensions of s and of the output."""

    d: int
    s: int
    out: int

    @property
    def point(self) -> float:
        """Floating-point operations for one hidden state, without what the states of a sample share."""
        return 2.0 * WIDTH * (self.d + 2 * WIDTH + self.out)

    @property
    def parameters(self) -> int:
        return 2 * self.d + (self.d + TIME_DIMS + self.s + 1) * WIDTH + 2 * (WIDTH + 1) * WIDTH + (WIDTH + 1) * self.out


def estimate(net: Net, points: float, samples: float, *, backward: float = 0.0) -> Work:
    """An estimator on hidden states of some samples, with ``backward`` further passes of the same products."""
    passes = 1 + backward
    elements = points * (NORM * net.d + 3 * WIDTH * GELU + 2 * WIDTH) * (1 + 1.6 * backward)
    flops = passes * points * net.point + (1 + min(backward, 1)) * 2.0 * samples * net.s * WIDTH
    return Work(35 + 25 * backward, flops, elements)


def fit_step(shape: Shape, net: Net, batch: int, done: Work, launches: float) -> Work:
    """One batch of a fit by Adam, which starts ``launches`` operations: the products and draws of its loss, ``done``,
    the images, and the step."""
    elements = done.elements + batch * shape.input_dim * PIXEL + ADAM * net.parameters
    return Work(launches, done.flops, elements)


@lru_cache(1024)
def estimator_bytes(net: Net) -> int:
    """Bytes of its file."""
    widths = [(WIDTH, net.d + TIME_DIMS + net.s), (WIDTH, WIDTH), (WIDTH, WIDTH), (net.out, WIDTH)]
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {"ln.weight": ("F32", (net.d,)), "ln.bias": ("F32", (net.d,))}
    for number, size in zip((0, 2, 4, 6), widths, strict=True):
        tensors |= {f"net.{number}.weight": ("F32", size), f"net.{number}.bias": ("F32", size[:1])}
    return stored(tensors)


# -- files -----------------------------------------------------------------------------------------------------------

_BYTES = {"F32": 4, "I64": 8, "U8": 1, "F64": 8}


def stored(tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> int:
    """Bytes of a safetensors file with these tensors: type and shape by name."""
    listed, end = {}, 0
    for name, (dtype, shape) in tensors.items():
        start, end = end, end + _BYTES[dtype] * math.prod(shape)
        listed[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    header = len(json.dumps(listed, separators=(",", ":")))
    return 8 + math.ceil(header / 8) * 8 + end
