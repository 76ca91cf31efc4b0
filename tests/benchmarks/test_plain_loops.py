"""What the benchmarks compare computes the same: the plain loops' numbers are ours."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks import linear, plain_training
from benchmarks.grids import Grid
from torch import Tensor

from creditgrid.core.methods.state_bridge import StateBridge
from creditgrid.core.science.credit import feedback_matrices
from creditgrid.core.science.data import ImageData, training_batches
from creditgrid.core.science.estimators import EstimatorNet, loaded_estimator
from creditgrid.core.science.fitting import FitEpoch, Fitting, fitted
from creditgrid.core.science.network import ResidualMLP
from creditgrid.core.science.random_streams import generator
from creditgrid.core.science.training import train
from creditgrid.core.task import Arrays
from creditgrid.core.units.code import read

pytestmark = pytest.mark.slow
BATCH = 16
BASE: dict[str, Any] = {
    "seed": 3,
    "num_blocks": 3,
    "d_hidden": 16,
    "w2_std": 0.2,
    "batch_size": BATCH,
    "train_epochs": 2,
    "fit_epochs": 1,
    "lr": 3e-3,
}
SOURCES: list[dict[str, Any]] = [
    {"method": "oracle_bp"},
    {"method": "dfa"},
    {"method": "vec"},
    {"method": "scalar_cb"},
    {"method": "scalar_cb", "cb_source": "delta_L"},
    {"method": "state_bridge"},
]
GRIDS: dict[str, list[dict[str, Any]]] = {
    "linesearch": [
        {"update_range": update_range, "norm_mode": norm_mode, "eta": 0.03}
        for update_range, norm_mode in itertools.product(("last1", "last2", "all"), ("raw", "norm"))
    ],
    "exploitability": [
        {"rule": "inner_product", "eta": 0.03},
        {"rule": "inner_product", "eta": 0.03, "norm_mode": "raw", "clamp": None, "eval": "same"},
        {"rule": "cosine", "eta": 0.03, "clamp": 1e-3},
        {"rule": "target_shift", "kappa": 0.3, "eta": 0.03},
    ],
    "snapshot_time": [{"checkpoint_epoch": 0}, {"checkpoint_epoch": 2, "update_range": "all"}],
    "credit_recovery": [{}],
}


@pytest.fixture(scope="module")
def made() -> dict[str, Arrays]:
    return {}


@pytest.mark.parametrize("experiment", GRIDS)
def test_cells(experiment: str, tiny_data: ImageData, made: dict[str, Arrays]) -> None:
    cells = [BASE | source | cell for source, cell in itertools.product(SOURCES, GRIDS[experiment])]
    grid = Grid(experiment, cells, tiny_data, made)
    for cell, ours, plain in zip(cells, grid.measured(), grid.plain(), strict=True):
        assert len(ours) == len(plain)
        for row, expected in zip(ours, plain, strict=True):
            for column, value in expected.items():
                # Both are float32: of a loss of order 1, a central difference of half-width 1e-3 keeps four digits.
                close = {"rel": 1e-3, "abs": 2e-4} if column == "rho" else {"rel": 1e-4, "abs": 1e-6}
                assert row[column] == pytest.approx(value, **close), (cell, column)


def test_cells_of_a_brought_method(tiny_data: ImageData, made: dict[str, Arrays]) -> None:
    code = read(Path(linear.__file__))
    grid = Grid(
        "linesearch", [BASE | {"method": "linear"} | cell for cell in GRIDS["linesearch"]], tiny_data, made, code
    )
    for ours, plain in zip(grid.measured(), grid.plain(), strict=True):
        assert ours[0] == pytest.approx(plain[0], rel=1e-4, abs=1e-6)


def _batches(data: ImageData, stream: str) -> list[tuple[Tensor, Tensor]]:
    return [(x.double(), y) for x, y in training_batches(data, BATCH, 3, 1, stream=stream)]


def _network(data: ImageData) -> ResidualMLP:
    return ResidualMLP(data.input_dim, 16, data.num_classes, 3, w2_std=0.2, generator=generator(3, "init")).double()


def _same(ours: torch.nn.Module, plain: torch.nn.Module) -> None:
    torch.testing.assert_close(ours.state_dict(), plain.state_dict(), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("rule", ["bp", "dfa"])
def test_training(rule: Any, tiny_data: ImageData) -> None:
    ours, plain = _network(tiny_data), _network(tiny_data)
    feedback = feedback_matrices(3, 3, 16, tiny_data.num_classes).double()
    batches = _batches(tiny_data, "train")
    options: dict[str, Any] = {"lr": 3e-3, "weight_decay": 0.01}
    run = train(ours, tiny_data, rule=rule, epochs=1, batch_size=BATCH, seed=3, feedback=feedback, **options)
    assert [state.epoch for state in run] == [0, 1]
    if rule == "dfa":
        plain_training.train_dfa_epoch(plain, plain_training.AlignmentOptimizers(plain, **options), feedback, batches)
    else:
        plain_training.train_epoch(plain, torch.optim.AdamW(plain.parameters(), **options), batches)
    _same(ours, plain)


def test_fitting_state_bridge(tiny_data: ImageData) -> None:
    network = _network(tiny_data).requires_grad_(False)
    plain = EstimatorNet(16, tiny_data.num_classes, 16, generator=generator(3, "fit/state_bridge/init")).double()
    tensors: dict[str, torch.Tensor] = {}

    def epochs() -> Iterator[FitEpoch]:
        tensors.update((yield from fitted(StateBridge(epochs=1), Fitting(network, tiny_data, BATCH, 3))))

    losses = [state.loss for state in epochs()]
    assert losses[1] is not None
    assert math.isfinite(losses[1])
    ours = loaded_estimator(tensors)
    optimizer = torch.optim.Adam(plain.parameters(), lr=1e-3)
    plain_training.fit_state_bridge_epoch(plain, optimizer, network, _batches(tiny_data, "fit"))
    _same(ours, plain)
