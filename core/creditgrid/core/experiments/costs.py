"""What trainings and measurements cost, from the shapes of their networks; ``science.counts`` has what they share with
the cost models of methods. ``tests/core/experiments/test_costs`` holds all of them against torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from creditgrid.core.datasets import DatasetRef
from creditgrid.core.errors import TaskError
from creditgrid.core.science.counts import (
    ADAM,
    NORM,
    PIXEL,
    RANDN,
    backprop,
    branches,
    forward,
    head,
)
from creditgrid.core.science.imported import CheckpointName
from creditgrid.core.task import Task
from creditgrid.core.units.known import Units, installed
from creditgrid.core.units.method import Method
from creditgrid.core.units.network import Size, network_of
from creditgrid.core.units.shape import Shape
from creditgrid.core.units.unit import parameters_of
from creditgrid.core.work import Work

TEST_BATCH = 1024
"""Images at a time when the test set is evaluated."""


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


# -- measurements ----------------------------------------------------------------------------------------------------

GAMMA_BATCHES, RHO_DIRECTIONS, NUDGES = 10, 32, 3  # as in science.credit_quality, which imports torch
LOADED = Work(launches=1000.0)
"""The network, the probe and the sources of a call, made from their artifacts."""
SEARCH_BYTES, ROLLOUT_BYTES = 32 * 2**20, 64 * 2**20
"""Memory for the networks that a line search, and a rollout, computes side by side."""


def method_of(task: Task, units: Units | None) -> Method | None:
    """The credit method of a measure task, with its parameters; None for one that is not among the units.

    Without ``units``: those of this installation.
    """
    found = (units or installed()).of("methods").get(task.params["method"])
    if found is None or not issubclass(found, Method):
        return None
    return _setting(found, tuple([task.params.get(name) for name in parameters_of(found)]))


def fit_method_of(task: Task, units: Units | None) -> Method | None:
    """The method that a fit task fits; its parameters are among the task's by the names of its fields."""
    found = (units or installed()).of("methods").get(task.params["estimator"])
    if found is None or not issubclass(found, Method):
        return None
    return _setting(found, tuple([task.params.get(name) for name in found.model_fields]))


@lru_cache(4096)
def _setting(method: type[Method], values: tuple[Any, ...]) -> Method:
    return method.of(dict(zip(parameters_of(method), values, strict=True)))


def source_part(task: Task, method: Method) -> str:
    """The name of what a call computes once for each source of credits, as ``science.credit_sources`` names it."""
    origin = task.parents.get("estimator") or task.parents.get("feedback") or ""
    return f"{method!r:.500}/{origin}"


def rule_part(task: Task) -> str:
    """The name of a cell's update rule with its parameters."""
    name = task.params["rule"]
    rule = installed().of("rules").get(name)
    return name if rule is None else f"{name} {[task.params.get(parameter) for parameter in parameters_of(rule)]}"


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
    gradients = forward(shape, images).plus(backprop(shape, images, depth))
    shifted = 2.0 * RHO_DIRECTIONS * first
    slopes = branches(shape, shifted, depth * (depth + 1) / 2).plus(head(shape, shifted * depth))
    drawn = Work(10.0 * depth, 0.0, RHO_DIRECTIONS * first * shape.hidden * depth * (RANDN / 4 + 6))
    return double(Work.total(batched(gradients, batches), batched(slopes, 2), drawn))


@lru_cache(4096)
def source_quality(method: Method, shape: Shape, batch: int, test: int) -> Work | None:
    """gamma and rho of one source; None if its cost is unknown."""
    batches = min(GAMMA_BATCHES, math.ceil(test / batch))
    images, first = min(batches * batch, test), min(batch, test)
    credits = method.credit_cost(shape, images + first, shape.blocks)
    if credits is None:
        return None
    along = Work(15.0 * shape.blocks, 0.0, RHO_DIRECTIONS * first * shape.hidden * shape.blocks * 1.5)
    return double(batched(credits, batches + 1).plus(along))


@lru_cache(4096)
def nudged(shape: Shape, batch: int, test: int) -> Work:
    """The nudges of one source at each layer."""
    samples, depth = float(NUDGES * min(batch, test)), shape.blocks
    return double(branches(shape, samples, depth * (depth + 1) / 2).plus(batched(head(shape, samples * depth), depth)))


@lru_cache(4096)
def prediction_error(method: Method, shape: Shape, batch: int, test: int) -> Work | None:
    """What a method that predicts h_L predicts on the whole test set; None if its cost is unknown."""
    credits = method.credit_cost(shape, test, shape.blocks)
    if credits is None:
        return None
    passed = forward(shape, test).plus(credits.times(0.5))  # a credit needs the predictions, and their gradients
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
def rollout_step(method: Method, shape: Shape, samples: int, blocks: int, noise: bool) -> Work | None:
    """One local step of one rollout: forward, credits, gradients and the step, from the first updated block on.

    None if the cost of the credits is unknown.
    """
    credits = method.credit_cost(shape, samples, blocks)
    if credits is None:
        return None
    moved = moved_parameters(shape, blocks, with_head=True)
    floats = 2 * moved + 6 * shape.blocks * samples * shape.hidden
    together = max(1, min(8, int(ROLLOUT_BYTES / (4 * floats))))
    parts = Work.total(
        branches(shape, samples, blocks).plus(head(shape, samples)),
        credits,
        local_gradients(shape, samples, blocks, with_head=True),
    )
    return Work(parts.launches / together + 40, parts.flops, parts.elements + moved * (8 + RANDN * noise / together))
