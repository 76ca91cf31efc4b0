"""What the stages below a cell cost: data, probes, feedback, trainings and fits; and the bytes of their artifacts."""

from __future__ import annotations

import math
from functools import lru_cache

from creditgrid.core.costing import Given
from creditgrid.core.experiments.costs import (
    checkpoint_shape,
    evaluation,
    fit_method_of,
    shape_of,
    train_step,
)
from creditgrid.core.science.counts import PIXEL, RANDN, stored
from creditgrid.core.task import Task
from creditgrid.core.units.known import Units
from creditgrid.core.units.shape import Shape
from creditgrid.core.work import Cost, Work

DECODED = 250.0
"""Elements for a pixel of an image that is decoded."""
SAVED = Work(launches=800.0)
"""An artifact written to the disk, besides its bytes."""

# -- artifacts -------------------------------------------------------------------------------------------------------


def written(size: float) -> Work:
    """Writing an artifact of this many bytes: checksum, copy, disk."""
    return Work(SAVED.launches, 0.0, size * 12.0)


@lru_cache(1024)
def checkpoint_bytes(shape: Shape) -> int:
    """The bytes of a network's parameters; the names in the file are those of a residual MLP, or about as long."""
    d = shape.hidden
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {
        "embed.weight": ("F32", (d, shape.input_dim)),
        "embed.bias": ("F32", (d,)),
    }
    for block in range(shape.blocks):
        of_block = {"ln.weight": (d,), "ln.bias": (d,), "w1.weight": (d, d), "w1.bias": (d,)}
        of_block |= {"w2.weight": (d, d), "w2.bias": (d,)}
        tensors |= {f"blocks.{block}.{name}": ("F32", size) for name, size in of_block.items()}
    tensors |= {"out_ln.weight": ("F32", (d,)), "out_ln.bias": ("F32", (d,))}
    tensors |= {"out_head.weight": ("F32", (shape.classes, d)), "out_head.bias": ("F32", (shape.classes,))}
    parameters = sum(math.prod(size) for _, size in tensors.values())
    return stored(tensors) + 4 * (shape.parameters - parameters)


# -- stages ----------------------------------------------------------------------------------------------------------


def data_cost(task: Task, given: Given) -> Cost | None:
    """Decoding a dataset and writing it."""
    dataset = given.dataset
    if dataset is None or dataset.image_shape is None:
        return None
    images = dataset.num_train + dataset.num_test
    pixels = images * math.prod(dataset.image_shape)
    shape = dataset.image_shape
    size = stored(
        {
            "x_train": ("U8", (dataset.num_train, *shape)),
            "y_train": ("I64", (dataset.num_train,)),
            "x_test": ("U8", (dataset.num_test, *shape)),
            "y_test": ("I64", (dataset.num_test,)),
            "mean": ("F32", shape[:1]),
            "std": ("F32", shape[:1]),
            "num_classes": ("I64", ()),
        }
    )
    done = written(size).plus(Work(200_000, 0.0, 20.0 * pixels))  # and the libraries that read it
    if task.source.get("package") == "parquet":
        done = done.plus(Work(4.0 * images, 0.0, DECODED * pixels))
    return Cost(done, bytes=size)


def probe_cost(task: Task, given: Given) -> Cost | None:
    """The fixed batches."""
    dataset = given.dataset
    if dataset is None or dataset.image_shape is None:
        return None
    batch, extra = task.params["batch_size"], task.params["extra"]
    steps, images = task.params["steps"], task.params["step_images"]
    test = min(batch, dataset.num_test)
    dim = math.prod(dataset.image_shape)
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {
        **{f"x_{name}": ("F32", (batch, dim)) for name in ("same", "held")},
        **{f"y_{name}": ("I64", (batch,)) for name in ("same", "held")},
        "x_extra": ("F32", (extra, batch, dim)),
        "y_extra": ("I64", (extra, batch)),
        "x_test": ("F32", (test, dim)),
        "y_test": ("I64", (test,)),
    }
    if steps:
        tensors |= {"x_steps": ("F32", (steps, images, dim)), "y_steps": ("I64", (steps, images))}
    size = stored(tensors)
    drawn = (2 + extra) * batch + steps * images
    work = Work(24.0 * (2 + extra + steps), 0.0, drawn * dim * (PIXEL + 4) + 30.0 * dataset.num_train)
    return Cost(work.plus(written(size)), bytes=size)


def feedback_cost(task: Task, given: Given) -> Cost | None:
    """The feedback matrices."""
    dataset = given.dataset
    if dataset is None or dataset.num_classes is None:
        return None
    blocks, d, classes = task.params["num_blocks"], task.params["d_hidden"], dataset.num_classes
    size = stored({f"B.{layer}": ("F32", (d, classes)) for layer in range(blocks)})
    return Cost(Work(10.0 * blocks, 0.0, blocks * d * classes * RANDN).plus(written(size)), bytes=size)


def train_cost(task: Task, given: Given) -> Cost | None:
    """Training up to the task's epoch, once for all checkpoints of the run; each is evaluated and written."""
    dataset = given.dataset
    shape = shape_of(task.params, dataset)
    if shape is None or dataset is None:
        return None
    params = task.params
    of_run, own, size = _train(
        shape, params["batch_size"], params["rule"], dataset.num_train, dataset.num_test, params["random_targets"]
    )
    return Cost(own, (("", of_run.times(params["epoch"])),), size)


@lru_cache(4096)
def _train(  # noqa: PLR0917
    shape: Shape, batch: int, rule: str, images: int, test: int, random_targets: bool
) -> tuple[Work, Work, int]:
    """An epoch, what a checkpoint adds, and its bytes."""
    epoch = train_step(shape, batch, rule).times(images / batch)
    launches = train_step(shape, batch, rule).launches + 2 * random_targets
    epoch = Work(launches * math.ceil(images / batch), epoch.flops, epoch.elements + 30.0 * images)
    size = checkpoint_bytes(shape)
    return epoch, evaluation(shape, test).plus(written(size)), size


def fit_cost(task: Task, given: Given, units: Units | None = None) -> Cost | None:
    """Fitting a method."""
    dataset = given.dataset
    shape = checkpoint_shape(given.parents["checkpoint"], dataset)
    if shape is None or dataset is None:
        return None
    method = fit_method_of(task, units)
    batch = task.params["batch_size"]
    if method is None or (step := method.fit_cost(shape, batch)) is None:
        return None
    images = dataset.num_train
    epoch = Work(step.launches * math.ceil(images / batch), step.flops * images / batch, step.elements * images / batch)
    size = method.fitted_bytes(shape)
    return Cost(epoch.times(method.epochs_of_fit()).plus(written(size or 0)), bytes=size)
