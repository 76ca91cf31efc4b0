"""Ours against the plain loops, turn by turn in one process, on the same data and threads."""

from __future__ import annotations

import copy
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from creditgrid.core.methods.scalar_cb import ScalarCB
from creditgrid.core.methods.state_bridge import StateBridge
from creditgrid.core.methods.vec import Vec
from creditgrid.core.science.choices import TrainRule
from creditgrid.core.science.credit import feedback_matrices
from creditgrid.core.science.data import ImageData
from creditgrid.core.science.estimators import EstimatorNet
from creditgrid.core.science.fitting import Fitting
from creditgrid.core.science.network import ResidualMLP
from creditgrid.core.science.random_streams import generator
from creditgrid.core.science.training import train
from creditgrid.core.task import Arrays
from creditgrid.core.units.code import Files, read
from creditgrid.core.units.method import Method

from . import plain_training
from .grids import Grid

BATCH = 128
IMAGES = 60 * BATCH
TESTS = 10 * BATCH
ROUNDS = 3

BASE: Mapping[str, Any] = {"seed": 0, "train_epochs": 1, "fit_epochs": 1, "batch_size": BATCH}
SOURCES: Sequence[Mapping[str, Any]] = (
    {"method": "dfa"},
    {"method": "state_bridge"},
    {"method": "scalar_cb"},
    {"method": "scalar_cb", "cb_source": "delta_L"},
    {"method": "vec"},
    {"method": "oracle_bp"},
)
ONE_EACH = [source for source in SOURCES if "cb_source" not in source]
RANGES = ("last1", "last2", "all")
ETAS = [10 ** (-5 + i / 2) for i in range(7)]
RULES: Sequence[Mapping[str, Any]] = (
    {"rule": "inner_product"},
    *({"rule": "target_shift", "kappa": kappa} for kappa in (0.1, 0.3, 1.0)),
)


class Comparison(NamedTuple):
    """Rates of both sides in ``unit``, medians over the rounds; the ratio is the median of the rounds' ratios."""

    name: str
    unit: str
    ours: float
    plain: float
    ratio: float
    wanted: float


def compare(name: str, unit: str, wanted: float, amount: float, sides: tuple[Callable[[], Any], ...]) -> Comparison:
    """Run both sides by turns; ``amount`` is how many units each does in one go."""
    rates: list[tuple[float, float]] = []
    for _ in range(ROUNDS):
        pair = []
        for side in sides:
            began = time.perf_counter()
            side()
            pair.append(amount / (time.perf_counter() - began))
        rates.append((pair[0], pair[1]))
    ours, plain = (statistics.median(side) for side in zip(*rates, strict=True))
    return Comparison(name, unit, ours, plain, statistics.median(a / b for a, b in rates), wanted)


def all_comparisons(data: ImageData) -> Iterator[Comparison]:
    data = cut(data)
    network = ResidualMLP(data.input_dim, 256, data.num_classes, 4, generator=generator(0, "init"))
    yield training("bp", data, network)
    yield training("dfa", data, network)
    frozen = trained(data, network)
    yield fitting_vec(data, frozen)
    yield fitting_scalar_cb(data, frozen)
    yield fitting_state_bridge(data, frozen)
    made: dict[str, Arrays] = {}
    yield from (measuring(experiment, data, made) for experiment in GRIDS)
    yield measuring("linesearch", data, made, BROUGHT, code=read(Path(__file__).with_name("linear.py")))


def cut(data: ImageData) -> ImageData:
    """Enough images to time an epoch by, and the ten test batches that gamma is of."""
    return replace(
        data,
        x_train=data.x_train[:IMAGES],
        y_train=data.y_train[:IMAGES],
        x_test=data.x_test[:TESTS],
        y_test=data.y_test[:TESTS],
    )


def trained(data: ImageData, network: ResidualMLP) -> ResidualMLP:
    network = copy.deepcopy(network)
    for _ in train(network, data, rule="bp", epochs=1, batch_size=BATCH, lr=1e-3, weight_decay=0.01, seed=0):
        pass
    return network.eval().requires_grad_(False)


def training(rule: TrainRule, data: ImageData, network: ResidualMLP) -> Comparison:
    fused, plain = copy.deepcopy(network), copy.deepcopy(network)
    options: dict[str, Any] = {"lr": 1e-3, "weight_decay": 0.01}
    feedback = feedback_matrices(0, network.num_blocks, network.d_hidden, network.num_classes)
    batches = plain_training.loader(data, BATCH)
    if rule == "bp":
        optimizer = torch.optim.AdamW(plain.parameters(), **options)
        epoch = lambda: plain_training.train_epoch(plain, optimizer, batches)  # noqa: E731
    else:
        optimizers = plain_training.AlignmentOptimizers(plain, **options)
        epoch = lambda: plain_training.train_dfa_epoch(plain, optimizers, feedback, batches)  # noqa: E731
    epochs = 1 + ROUNDS
    ours = train(fused, data, rule=rule, epochs=epochs, batch_size=BATCH, seed=0, feedback=feedback, **options)
    return by_epochs(f"training, {rule}", ours, epoch)


def fitting_vec(data: ImageData, network: ResidualMLP) -> Comparison:
    plain = estimator(network, network.d_hidden)
    optimizer, batches = torch.optim.Adam(plain.parameters(), lr=1e-3), plain_training.loader(data, BATCH)
    ours = fits(Vec(epochs=1 + ROUNDS), network, data)
    return by_epochs("fitting, vec", ours, lambda: plain_training.fit_vec_epoch(plain, optimizer, network, batches))


def fitting_scalar_cb(data: ImageData, network: ResidualMLP) -> Comparison:
    plain = estimator(network, 1)
    average = copy.deepcopy(plain).requires_grad_(False)
    optimizer, batches = torch.optim.Adam(plain.parameters(), lr=1e-3), plain_training.loader(data, BATCH)
    ours = fits(ScalarCB(epochs=1 + ROUNDS), network, data)
    return by_epochs(
        "fitting, scalar_cb",
        ours,
        lambda: plain_training.fit_scalar_cb_epoch(plain, average, optimizer, network, batches),
    )


def fitting_state_bridge(data: ImageData, network: ResidualMLP) -> Comparison:
    plain = estimator(network, network.d_hidden)
    optimizer, batches = torch.optim.Adam(plain.parameters(), lr=1e-3), plain_training.loader(data, BATCH)
    ours = fits(StateBridge(epochs=1 + ROUNDS), network, data)
    return by_epochs(
        "fitting, state_bridge",
        ours,
        lambda: plain_training.fit_state_bridge_epoch(plain, optimizer, network, batches),
    )


def estimator(network: ResidualMLP, out_dim: int) -> EstimatorNet:
    return EstimatorNet(network.d_hidden, network.num_classes, out_dim, generator=generator(0, "bench"))


def fits(method: Method, network: ResidualMLP, data: ImageData) -> Iterator[Any]:
    """The epochs of a method's fit."""
    return iter(method.fit(Fitting(network, data, BATCH, 0)))


def by_epochs(name: str, ours: Iterator[Any], plain: Callable[[], Any]) -> Comparison:
    """Epoch by epoch; one of each before the clock starts, in which the loader's workers start too."""
    plain()
    next(ours), next(ours)
    return compare(name, "images/s", 1.5, IMAGES, (lambda: next(ours), plain))


class Measuring(NamedTuple):
    """A grid, and how many times as many cells a second it wants."""

    wanted: float
    cells: Sequence[Mapping[str, Any]]


def product(*axes: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Every combination of one setting of each axis."""
    return [dict(itertools.chain(BASE.items(), *(s.items() for s in some))) for some in itertools.product(*axes)]


def axis(name: str, *values: Any) -> list[Mapping[str, Any]]:
    return [{name: value} for value in values]


GRIDS: Mapping[str, Measuring] = {
    "linesearch": Measuring(
        6.0,
        product(
            [source for source in ONE_EACH if source["method"] != "state_bridge"],
            axis("update_range", *RANGES),
            axis("norm_mode", "raw", "norm"),
            axis("eta", *ETAS),
        ),
    ),
    "exploitability": Measuring(3.0, product(ONE_EACH, RULES)),
    "snapshot_time": Measuring(3.0, product(ONE_EACH, axis("checkpoint_epoch", 0, 1))),
    "credit_recovery": Measuring(3.0, product(SOURCES)),
}


BROUGHT = Measuring(
    4.0,
    product(
        axis("method", "linear"), axis("update_range", *RANGES), axis("norm_mode", "raw", "norm"), axis("eta", *ETAS)
    ),
)
"""A line search over a method that is brought as a file."""


def measuring(
    experiment: str,
    data: ImageData,
    made: dict[str, Arrays],
    which: Measuring | None = None,
    code: Files | None = None,
) -> Comparison:
    wanted, cells = which or GRIDS[experiment]
    grid = Grid(experiment, cells, data, made, code)
    grid.measured(), grid.plain()
    name = experiment if code is None else f"{experiment}, brought"
    return compare(name, "cells/s", wanted, len(cells), (grid.measured, grid.plain))
