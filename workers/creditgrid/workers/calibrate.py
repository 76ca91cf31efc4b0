"""How fast this machine is, measured in about a second: ``python -m creditgrid.workers.calibrate`` prints it as JSON.

Three small jobs of the same code that calls run, with one thread as they have: many small training steps, whose time is
launches; images that are drawn and normalised; and large training steps, whose time is matrix products. The result is
seconds for each unit of `Work`, for the CPU and for a GPU if there is one. On a CPU the thread's own time counts, so
that other programs do not slow the measurement.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable

import torch

from creditgrid.core.experiments.costs import train_step
from creditgrid.core.networks import residual_mlp
from creditgrid.core.science.counts import PIXEL
from creditgrid.core.science.data import ImageData, training_batches
from creditgrid.core.science.network import ResidualMLP
from creditgrid.core.science.random_streams import generator
from creditgrid.core.science.training import train
from creditgrid.core.units.network import Size
from creditgrid.core.units.shape import Shape
from creditgrid.core.work import Work

SMALL, LARGE = (
    residual_mlp.ResidualMLP().shape(Size(images, 10, blocks, width, True, 0.01))
    for images, blocks, width in (((1, 8, 8), 2, 16), ((3, 32, 32), 4, 256))
)
SMALL_BATCH, LARGE_BATCH = 8, 128
SMALL_STEPS, LARGE_STEPS, EPOCHS = 40, 10, 7
POOL = 8192
"""Images of the second job: more than a cache holds, as in a real dataset."""


def calibrate(device: torch.device) -> dict[str, float]:
    """Seconds for a launch, a floating-point operation and an element on a device."""
    small = _seconds(device, SMALL, SMALL_BATCH, SMALL_STEPS)
    large = _seconds(device, LARGE, LARGE_BATCH, LARGE_STEPS)
    images = _images(LARGE, POOL).to(device)
    drawn = statistics.median(
        _timed(device, lambda: [None for _ in training_batches(images, LARGE_BATCH, 0, 1)]) for _ in range(EPOCHS)
    )
    element = drawn / (LARGE.input_dim * POOL * PIXEL)
    done = train_step(SMALL, SMALL_BATCH, "bp")
    launch = max(small / SMALL_STEPS - done.elements * element, 1e-7) / done.launches
    done = train_step(LARGE, LARGE_BATCH, "bp")
    rest = large / LARGE_STEPS - done.launches * launch - done.elements * element
    return Work(launch, max(rest, 0.1 * large / LARGE_STEPS) / done.flops, element)._asdict()


def _images(shape: Shape, count: int) -> ImageData:
    side = {64: (1, 8, 8), 3072: (3, 32, 32)}[shape.input_dim]
    draws = generator(0, "calibrate")
    pixels = torch.randint(256, (count, *side), dtype=torch.uint8, generator=draws)
    labels = torch.randint(shape.classes, (count,), generator=draws)
    statistic = torch.full(side[:1], 0.5)
    return ImageData(pixels, labels, pixels[:1], labels[:1], statistic, statistic, shape.classes)


def _seconds(device: torch.device, shape: Shape, batch: int, steps: int) -> float:
    """The usual time of an epoch of training."""
    data = _images(shape, batch * steps).to(device)
    network = ResidualMLP(shape.input_dim, shape.hidden, shape.classes, shape.blocks, generator=generator(0, "init"))
    options = {"epochs": EPOCHS + 1, "batch_size": batch, "lr": 1e-3, "weight_decay": 0.01, "seed": 0}
    run = train(network.to(device), data, rule="bp", **options)  # type: ignore[arg-type]
    next(run), next(run)  # the first epoch allocates
    return statistics.median(_timed(device, lambda: next(run)) for _ in range(EPOCHS))


def _timed(device: torch.device, job: Callable[[], object]) -> float:
    if device.type != "cuda":
        started = time.thread_time()
        job()
        return time.thread_time() - started
    torch.cuda.synchronize(device)
    started = time.perf_counter()
    job()
    torch.cuda.synchronize(device)
    return time.perf_counter() - started


def main() -> None:
    torch.set_num_threads(1)
    found = {"cpu": calibrate(torch.device("cpu"))}
    if torch.cuda.is_available():
        found["cuda"] = calibrate(torch.device("cuda"))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
