"""Ours against the plain loops, turn by turn in one process, on the same data and threads."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from tests.benchmarks import plain_loops

from creditgrid.core.credit import credits, feedback_matrices
from creditgrid.core.data import ImageData, training_batches
from creditgrid.core.estimators import EstimatorNet
from creditgrid.core.fitting import fit_scalar_cb, fit_vec
from creditgrid.core.line_search import Step, line_search
from creditgrid.core.network import ResidualMLP
from creditgrid.core.streams import generator
from creditgrid.core.training import train_bp

BATCH = 128
IMAGES = 60 * BATCH
ROUNDS = 3
METHODS = ("dfa", "scalar_cb", "vec", "oracle_bp")
ETAS = [10 ** (-5 + i / 2) for i in range(7)]


class Comparison(NamedTuple):
    """Rates of both sides in ``unit``, medians over the rounds; the ratio is the median of the rounds' ratios."""

    name: str
    unit: str
    ours: float
    plain: float
    ratio: float
    wanted: float


def compare(
    name: str, unit: str, wanted: float, amount: tuple[float, float], sides: tuple[Callable[[], Any], ...]
) -> Comparison:
    """Run both sides by turns; ``amount`` is how many units each does in one go."""
    rates: list[tuple[float, float]] = []
    for _ in range(ROUNDS):
        pair = []
        for side, units in zip(sides, amount, strict=True):
            began = time.perf_counter()
            side()
            pair.append(units / (time.perf_counter() - began))
        rates.append((pair[0], pair[1]))
    ours, plain = (statistics.median(side) for side in zip(*rates, strict=True))
    return Comparison(name, unit, ours, plain, statistics.median(a / b for a, b in rates), wanted)


def all_comparisons(data: ImageData) -> Iterator[Comparison]:
    data = replace(data, x_train=data.x_train[:IMAGES], y_train=data.y_train[:IMAGES])
    network = ResidualMLP(data.input_dim, 256, data.num_classes, 4, generator=generator(0, "init"))
    yield training(data, copy.deepcopy(network))
    for _ in train_bp(network, data, epochs=1, batch_size=BATCH, lr=1e-3, weight_decay=0.01, seed=0):
        pass
    network.eval().requires_grad_(False)
    yield fitting_vec(data, network)
    yield fitting_scalar_cb(data, network)
    yield searching(data, network)


def training(data: ImageData, network: ResidualMLP) -> Comparison:
    plain_network = copy.deepcopy(network)
    optimizer = torch.optim.AdamW(plain_network.parameters(), lr=1e-3, weight_decay=0.01)
    batches = plain_loops.loader(data, BATCH)
    plain_loops.train_epoch(plain_network, optimizer, batches)  # the workers start before the clock does
    ours = train_bp(network, data, epochs=1 + ROUNDS, batch_size=BATCH, lr=1e-3, weight_decay=0.01, seed=0)
    next(ours), next(ours)
    sides = (lambda: next(ours), lambda: plain_loops.train_epoch(plain_network, optimizer, batches))
    return compare("training, bp", "images/s", 1.5, (IMAGES, IMAGES), sides)


def fitting_vec(data: ImageData, network: ResidualMLP) -> Comparison:
    estimator = EstimatorNet(256, data.num_classes, 256, generator=generator(0, "bench"))
    plain = copy.deepcopy(estimator)
    optimizer = torch.optim.Adam(plain.parameters(), lr=1e-3)
    batches = plain_loops.loader(data, BATCH)
    plain_loops.fit_vec_epoch(plain, optimizer, network, batches)
    ours = fit_vec(estimator, network, data, epochs=1 + ROUNDS, batch_size=BATCH, seed=0)
    next(ours), next(ours)
    sides = (lambda: next(ours), lambda: plain_loops.fit_vec_epoch(plain, optimizer, network, batches))
    return compare("fitting, vec", "images/s", 1.5, (IMAGES, IMAGES), sides)


def fitting_scalar_cb(data: ImageData, network: ResidualMLP) -> Comparison:
    estimator = EstimatorNet(256, data.num_classes, 1, generator=generator(0, "bench"))
    plain = copy.deepcopy(estimator)
    average = copy.deepcopy(estimator).requires_grad_(False)
    optimizer = torch.optim.Adam(plain.parameters(), lr=1e-3)
    batches = plain_loops.loader(data, BATCH)
    plain_loops.fit_scalar_cb_epoch(plain, average, optimizer, network, batches)
    ours = fit_scalar_cb(estimator, network, data, epochs=1 + ROUNDS, batch_size=BATCH, seed=0)
    next(ours), next(ours)
    sides = (
        lambda: next(ours),
        lambda: plain_loops.fit_scalar_cb_epoch(plain, average, optimizer, network, batches),
    )
    return compare("fitting, scalar_cb", "images/s", 1.5, (IMAGES, IMAGES), sides)


def searching(data: ImageData, network: ResidualMLP) -> Comparison:
    stream = training_batches(data, BATCH, 0, 0, stream="probe")
    same, held = next(stream), next(stream)
    feedback = feedback_matrices(0, 4, 256, data.num_classes)
    estimators = {
        "vec": EstimatorNet(256, data.num_classes, 256, generator=generator(0, "a")).requires_grad_(False),
        "scalar_cb": EstimatorNet(256, data.num_classes, 1, generator=generator(0, "b")).requires_grad_(False),
    }
    grid = [
        (method, update_range, norm_mode, eta)
        for method in METHODS
        for update_range in ("last1", "last2", "all")
        for norm_mode in ("raw", "norm")
        for eta in ETAS
    ]

    def fused() -> None:
        with torch.no_grad():
            logits, hiddens = network(same[0], return_hidden=True)
        sources = {
            method: credits(
                method, network, hiddens, logits, same[1], feedback=feedback, estimator=estimators.get(method)
            )
            for method in METHODS
        }
        steps = [
            Step(method, update_range, norm, eta, update_range != "last1") for method, update_range, norm, eta in grid
        ]
        line_search(network, *same, *held, sources, steps)

    def plain() -> None:
        for method, update_range, norm, eta in grid:
            plain_loops.line_search_cell(
                network, same, held, method, update_range, norm, eta, feedback, estimators.get(method)
            )

    fused(), plain()
    return compare("line search", "cells/s", 6.0, (len(grid), len(grid)), (fused, plain))
