"""Every experiment's rows against a slow recomputation in float64 that shares no code with ours.

Cells of one group are measured in one call, as a worker would, so what the calls share between cells is held against
computations that share nothing. Everything runs in this process on images that train in a second.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import pytest
import torch
from in_process import measured
from recompute import EXPERIMENTS, agrees, expected_rows

from creditgrid.core.datasets import DatasetRef
from creditgrid.core.experiments.registry import registry
from creditgrid.core.science.data import ImageData
from creditgrid.core.task import Arrays

Cell: TypeAlias = dict[str, Any]

CPU = torch.device("cpu")
TINY = DatasetRef("tiny", "d" * 64, 200, 60, 5, (3, 8, 8), {"package": "none"})
BASE: Cell = {
    "dataset": "tiny",
    "seed": 3,
    "num_blocks": 3,
    "d_hidden": 16,
    "w2_std": 0.2,
    "batch_size": 16,
    "train_epochs": 2,
    "lr": 3e-3,
}
CREDITS: list[Cell] = [
    {"method": "oracle_bp"},
    {"method": "oracle_bp", "oracle_reduction": "sum"},
    {"method": "dfa"},
    {"method": "vec"},
    {"method": "scalar_cb"},
    {"method": "scalar_cb", "cb_source": "delta_L"},
    {"method": "state_bridge"},
]
REGULARISED: list[Cell] = [
    {"step_batch_size": 20},
    {"step_batch_size": 8, "step_noise": 0.01},
    {"step_weight_decay": 0.1},
    {"step_noise": 0.02, "step_weight_decay": 0.3, "probe_seed": 9},
]

RULES: list[Cell] = [{"rule": "inner_product"}, {"rule": "cosine"}, {"rule": "target_shift", "kappa": 0.3}]


def product(*axes: Iterable[Cell], **more: Sequence[Any]) -> list[Cell]:
    """Every combination of one setting of each axis."""
    named = [[{name: value} for value in values] for name, values in more.items()]
    return [dict(itertools.chain(*(s.items() for s in some))) for some in itertools.product(*axes, *named)]


def every(credits: Iterable[Cell], **base: Any) -> list[Cell]:
    return [BASE | {"fit_epochs": 1} | base | credit for credit in credits]


@pytest.fixture(scope="module")
def made() -> dict[str, Arrays]:
    """Artifacts by key: experiments of this module share them, as sweeps do."""
    return {}


def check(name: str, cells: Sequence[Cell], data: ImageData, made: dict[str, Arrays]) -> list[list[dict[str, Any]]]:
    """Hold every row against its recomputation, and give the rows of every cell."""
    experiment = registry().experiments[name]
    found = measured(experiment, cells, TINY, data, made)
    failures = []
    for cell, (params, artifacts, rows) in zip(cells, found, strict=True):
        wanted = expected_rows(name, params, artifacts)
        assert all(set(row) == set(experiment.columns) for row in wanted)
        if (worst := agrees(wanted, rows)).ratio > 1:
            failures.append((worst, {key: value for key, value in cell.items() if BASE.get(key) != value}))
    assert not failures, f"{len(failures)} of {len(cells)} cells disagree, such as {failures[:5]}"
    return [rows for _, _, rows in found]


def test_every_experiment_is_recomputed_here() -> None:
    assert {f"test_{name}" for name in EXPERIMENTS} <= set(globals())


def test_linesearch(tiny_data: ImageData, made: dict[str, Arrays]) -> None:
    shapes: dict[str, list[Any]] = {
        "update_range": ["last1", "last2", "all"],
        "norm_mode": ["raw", "norm"],
        "eta": [1e-3, 0.1],
    }
    cells = product(every(CREDITS), **shapes)
    cells += product(every(CREDITS[2:4]), REGULARISED, update_range=["last1", "all"], eta=[0.03, 0.1])
    cells += product(every(CREDITS, residual_add=False), norm_mode=["norm"], eta=[0.03])
    cells += product(every(CREDITS[3:4]), update_head=["always", "never"], update_range=["last1", "all"], eta=[0.1])
    cells += product(every(CREDITS[1:4]), RULES, norm_mode=["raw", "norm"], clamp=[None, 1e-3], eta=[0.1])
    cells += product(
        every(CREDITS[2:4]), RULES, REGULARISED[3:], step_radius=[1e-3, 1.0], clamp=["none", 0.01], eta=[0.1]
    )
    check("linesearch", cells, tiny_data, made)


def test_snapshot_time(tiny_data: ImageData, made: dict[str, Arrays]) -> None:
    cells = product(every(CREDITS), checkpoint_epoch=[0, 2])
    cells += product(every(CREDITS[:3]), update_range=["last2", "all"], eta=[None, 0.02])
    cells += every(CREDITS[2:4], residual_add=False, update_range="all", extra_batches=7)
    cells += every(CREDITS[3:4], probe_seed=9, extra_batches=2)
    (first, *_) = check("snapshot_time", cells, tiny_data, made)[0]
    assert first["best_eta"] == 1e-2


def test_exploitability(tiny_data: ImageData, made: dict[str, Arrays]) -> None:
    cells = product(every(CREDITS), RULES, norm_mode=["raw", "norm"], eta=[0.03])
    cells += product(every(CREDITS[1:2]), RULES, clamp=["none", 1e-3], k=[1, 4], eta=[0.1])
    cells += product(every(CREDITS[2:4]), REGULARISED, eval=["held", "same"], k=[3], eta=[0.05])
    cells += product(every(CREDITS, residual_add=False), RULES[2:], k=[2])
    cells += product(
        every(CREDITS[1:4]), RULES, step_radius=[0.01, 1.0], k=[3], step_weight_decay=[0.0, 0.1], eta=[0.3]
    )
    check("exploitability", cells, tiny_data, made)


def test_credit_recovery(tiny_data: ImageData, made: dict[str, Arrays]) -> None:
    cells = product(every(CREDITS), checkpoint_epoch=[0, 2])
    cells += every(CREDITS, residual_add=False, probe_seed=9)
    cells += every(CREDITS[2:4], batch_size=5)  # of twelve test batches, ten are looked at
    for rows in check("credit_recovery", cells, tiny_data, made):
        assert [row["layer"] for row in rows] == [0, 1, 2]


def test_dynamics(tiny_data: ImageData, made: dict[str, Arrays]) -> None:
    rules: list[Cell] = [{"train_rule": "bp"}, {"train_rule": "dfa"}, {"train_rule": "dfa", "random_targets": True}]
    cells = [BASE | cell for cell in product(rules, residual_add=[True, False], train_epochs=[3], logs_every=[1, 2])]
    for cell, rows in zip(cells, check("dynamics", cells, tiny_data, made), strict=True):
        epochs = [0, 1, 2, 3] if cell["logs_every"] == 1 else [0, 2, 3]
        assert [(row["epoch"], row["layer"]) for row in rows] == [(e, layer) for e in epochs for layer in range(4)]
