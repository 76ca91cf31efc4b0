"""What the protocols cost, from the shapes of their tensors: networks, estimators, credits and measurements.

Each function returns the `Work` of what it is named after, in single precision. Notation: b samples, input dimension D,
d elements of a hidden state, L blocks, C classes. Matrix products are counted exactly. The counts of launches were
taken from torch for the residual MLP, and element-wise functions count by their time relative to a sum of two tensors.
``tests/core/experiments/test_costs`` holds all of them against torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from creditgrid.core.datasets import DatasetRef
from creditgrid.core.errors import TaskError
from creditgrid.core.science.imported import CheckpointName
from creditgrid.core.task import Task
from creditgrid.core.units.known import installed
from creditgrid.core.units.network import Size, network_of
from creditgrid.core.units.shape import Shape
from creditgrid.core.work import Work

WIDTH, TIME_DIMS = 256, 32  # of an estimator, as in science.estimators, which imports torch
TEST_BATCH = 1024
"""Images at a time when the test set is evaluated."""
PIXEL = 24.0
"""Elements for a pixel of a training batch: drawn, cropped, flipped and normalised."""
GELU, NORM, RANDN, ADAM = 3.0, 3.0, 25.0, 5.0
"""Elements for each number: forward passes of GELU and LayerNorm (backward twice and once), a draw, and Adam's step."""


def shape_of(params: Mapping[str, Any], dataset: DatasetRef | None) -> Shape | None:
    """The shape of the network with these parameters on a dataset; None if the dataset's or the network's is unknown.

    ``params`` are those of a cell, a training or a fit (see `network_of`).
    """
    if dataset is None or dataset.image_shape is None or dataset.num_classes is None:
        return None
    size = Size(dataset.image_shape, dataset.num_classes, params["num_blocks"], params["d_hidden"], True, 0.0)
    try:
        network = network_of(params, installed())
    except TaskError:  # it comes with the sweep's code
        return None
    return network.shape(size)


def checkpoint_shape(checkpoint: Task, dataset: DatasetRef | None) -> Shape | None:
    """The shape of the network in a checkpoint, trained or imported."""
    if "name" in checkpoint.params:
        found = CheckpointName.parse(checkpoint.params["name"])
        size = Size((1, 1, found.input_dim), found.num_classes, found.num_blocks, found.d_hidden, True, 0.0)
        return network_of({}, installed()).shape(size)
    return shape_of(checkpoint.params, dataset)


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


@lru_cache(4096)
def local_gradients(shape: Shape, samples: float, blocks: float, *, with_head: bool) -> Work:
    """The gradients of each block's own loss, and of the head's, from hidden states that are known."""
    of_blocks = Work(35 * blocks, 3 * samples * blocks * shape.branch_flops, samples * blocks * shape.hidden * 22)
    if not with_head:
        return of_blocks
    return of_blocks.plus(Work(40, 3 * samples * shape.head_flops, samples * shape.hidden * 3 * NORM))


@lru_cache(4096)
def train_step(shape: Shape, batch: int, rule: str) -> Work:
    """One batch of training by bp or dfa, with the batch's images and AdamW's step.

    Backprop computes each weight's gradient and each layer's input gradient, but not that of the images. Direct
    feedback alignment needs the same products, and its credits.
    """
    flops = 3 * (shape.embed_flops + shape.blocks * shape.branch_flops + shape.head_flops)
    flops -= shape.embed_flops
    launches, each = 77.0 + 32 * shape.blocks, 20.0
    if rule == "dfa":
        flops += 2.0 * shape.hidden * shape.classes * shape.blocks
        launches, each = 87.0 + 49 * shape.blocks, 28.0
    hidden = shape.hidden * ((shape.blocks + 1) * each)
    elements = batch * (shape.input_dim * PIXEL + hidden) + ADAM * shape.parameters
    return Work(launches, batch * flops, elements)


@lru_cache(4096)
def evaluation(shape: Shape, images: int) -> Work:
    """Accuracy and loss on images, a large batch at a time."""
    batches = math.ceil(images / TEST_BATCH)
    once = Work(30 + 8 * shape.blocks, 0.0, 0.0).times(batches)
    passed = forward(shape, images)
    return Work(once.launches, passed.flops, passed.elements + 4.0 * images * shape.input_dim)


# -- estimators and credits ------------------------------------------------------------------------------------------


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


def estimator_of(which: str, shape: Shape, s_source: object = None) -> Net:
    """The net of an estimator on a network of this shape."""
    s = shape.hidden if s_source == "delta_L" else shape.classes
    return Net(shape.hidden, s, 1 if which == "scalar_cb" else shape.hidden)


def estimate(net: Net, points: float, samples: float, *, backward: float = 0.0) -> Work:
    """An estimator on hidden states of some samples, with ``backward`` further passes of the same products."""
    passes = 1 + backward
    elements = points * (NORM * net.d + 3 * WIDTH * GELU + 2 * WIDTH) * (1 + 1.6 * backward)
    flops = passes * points * net.point + (1 + min(backward, 1)) * 2.0 * samples * net.s * WIDTH
    return Work(35 + 25 * backward, flops, elements)


@lru_cache(4096)
def fit_step(which: str, shape: Shape, net: Net, batch: int, draws: int) -> Work:
    """One batch of a fit; ``draws`` are the directions of vec or the noise draws of scalar_cb."""
    hidden = forward(shape, batch)
    terminal = terminal_gradient(shape, batch)
    depth = shape.blocks
    if which == "vec":
        shifted = 2.0 * draws * batch  # from layer l, which is drawn uniformly: (L + 1)/2 blocks follow on average
        slopes = branches(shape, shifted, (depth + 1) / 2).plus(head(shape, shifted))
        fitted = estimate(net, 2 * batch, batch, backward=2)
        drawn = draws * batch * shape.hidden * (RANDN + 12)
        launches = 250.0 + 13 * depth
        done = Work.total(hidden, terminal, slopes, fitted)
    elif which == "scalar_cb":
        around = estimate(net, depth * draws * batch, batch)
        fitted = estimate(net, depth * batch, batch, backward=2)
        # The value at h_L, its slope, and the gradient of the slope's error: both run through the slope's graph.
        slope = estimate(net, batch, batch, backward=5)
        drawn = depth * draws * batch * shape.hidden * (RANDN + 4)
        launches = 512.0 + 7 * depth
        done = Work.total(hidden, terminal, around, fitted, slope)
    else:
        fitted = estimate(net, depth * batch, batch, backward=2)
        drawn = depth * batch * shape.hidden * 8.0
        launches = 178.0 + 7 * depth
        done = Work.total(hidden, fitted)
    elements = done.elements + drawn + batch * shape.input_dim * PIXEL + ADAM * net.parameters
    return Work(launches, done.flops, elements)


@lru_cache(4096)
def credit(method: str, shape: Shape, samples: float, blocks: float, s_source: object = None) -> Work:
    """The credits of the last ``blocks`` layers on samples whose hidden states are known."""
    points = samples * blocks
    if method == "oracle_bp":
        back = branches(shape, samples, blocks).plus(
            Work(25 * blocks, points * shape.branch_flops, points * shape.hidden * 14)
        )
        return terminal_gradient(shape, samples).plus(back)
    if method == "dfa":
        return Work(10 + 3 * blocks, 2.0 * points * shape.classes * shape.hidden, points * shape.hidden)
    net = estimator_of(method, shape, s_source)
    done = estimate(net, points, samples, backward=0.0 if method == "vec" else 1.0)
    if method == "state_bridge":
        done = done.plus(terminal_gradient(shape, points))
    return done


# -- measurements ----------------------------------------------------------------------------------------------------

GAMMA_BATCHES, RHO_DIRECTIONS, NUDGES = 10, 32, 3  # as in science.credit_quality, which imports torch
LOADED = Work(launches=1000.0)
"""The network, the probe and the sources of a call, made from their artifacts."""
SEARCH_BYTES, ROLLOUT_BYTES = 32 * 2**20, 64 * 2**20
"""Memory for the networks that a line search, and a rollout, computes side by side."""


def source_part(task: Task) -> str:
    """The name of what a call computes once for each source of credits, as ``science.credit_sources`` names it."""
    origin = task.parents.get("estimator") or task.parents.get("feedback") or task.params.get("oracle_reduction", "")
    return f"{task.params['method']}/{origin}"


def double(work: Work) -> Work:
    """The same in double precision."""
    return Work(work.launches, 2 * work.flops, 4 * work.elements)


def batched(work: Work, batches: int) -> Work:
    """The same work in several batches."""
    return Work(work.launches * batches, work.flops, work.elements)


@lru_cache(4096)
def quality(shape: Shape, batch: int, test: int) -> Work:
    """What gamma and rho of all sources share: the gradients of the test batches, and the central differences."""
    batches = min(GAMMA_BATCHES, math.ceil(test / batch))
    images, first, depth = min(batches * batch, test), min(batch, test), shape.blocks
    gradients = forward(shape, images).plus(credit("oracle_bp", shape, images, depth))
    shifted = 2.0 * RHO_DIRECTIONS * first
    slopes = branches(shape, shifted, depth * (depth + 1) / 2).plus(head(shape, shifted * depth))
    drawn = Work(10.0 * depth, 0.0, RHO_DIRECTIONS * first * shape.hidden * depth * (RANDN / 4 + 6))
    return double(Work.total(batched(gradients, batches), batched(slopes, 2), drawn))


@lru_cache(4096)
def source_quality(method: str, shape: Shape, batch: int, test: int, s_source: object) -> Work:
    """gamma and rho of one source."""
    batches = min(GAMMA_BATCHES, math.ceil(test / batch))
    images, first = min(batches * batch, test), min(batch, test)
    credits = credit(method, shape, images + first, shape.blocks, s_source)
    along = Work(15.0 * shape.blocks, 0.0, RHO_DIRECTIONS * first * shape.hidden * shape.blocks * 1.5)
    return double(batched(credits, batches + 1).plus(along))


@lru_cache(4096)
def nudged(shape: Shape, batch: int, test: int) -> Work:
    """The nudges of one source at each layer."""
    samples, depth = float(NUDGES * min(batch, test)), shape.blocks
    return double(branches(shape, samples, depth * (depth + 1) / 2).plus(batched(head(shape, samples * depth), depth)))


@lru_cache(4096)
def prediction_error(shape: Shape, batch: int, test: int) -> Work:
    """What a state bridge predicts on the whole test set."""
    net = estimator_of("state_bridge", shape)
    passed = forward(shape, test).plus(estimate(net, float(test * shape.blocks), test))
    return double(batched(passed, math.ceil(test / batch)))


def moved_parameters(shape: Shape, blocks: int, *, with_head: bool) -> float:
    """How many parameters a local step moves."""
    return float(blocks * shape.block_parameters + (shape.head_parameters if with_head else 0))


@lru_cache(4096)
def candidate(shape: Shape, samples: int, blocks: int, *, with_head: bool) -> Work:
    """One step size of a line search: the stepped parameters, and both batches of so many samples through them."""
    floats = shape.block_parameters + 4 * samples * shape.hidden
    together = max(1, min(4, SEARCH_BYTES // (4 * floats)))
    passed = branches(shape, samples, blocks).plus(head(shape, samples))
    elements = passed.elements + 3 * moved_parameters(shape, blocks, with_head=with_head)
    return Work((24.0 * blocks + 40) / together, passed.flops, elements)


@lru_cache(4096)
def rollout_step(  # noqa: PLR0917
    method: str, shape: Shape, samples: int, blocks: int, s_source: object, noise: bool
) -> Work:
    """One local step of one rollout: forward, credits, gradients and the step, from the first updated block on."""
    moved = moved_parameters(shape, blocks, with_head=True)
    floats = 2 * moved + 6 * shape.blocks * samples * shape.hidden
    together = max(1, min(8, int(ROLLOUT_BYTES / (4 * floats))))
    parts = Work.total(
        branches(shape, samples, blocks).plus(head(shape, samples)),
        credit(method, shape, samples, blocks, s_source),
        local_gradients(shape, samples, blocks, with_head=True),
    )
    return Work(parts.launches / together + 40, parts.flops, parts.elements + moved * (8 + RANDN * noise / together))
