"""Every experiment on every network, against a slow recomputation in float64 that shares no code with ours."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from in_process import Cell, measured
from PIL import Image
from recompute import EXPERIMENTS, agrees, expected_rows

from creditgrid.core.datasets import DatasetRef
from creditgrid.core.experiments.registry import registry
from creditgrid.core.science.data import ImageData
from creditgrid.core.task import Arrays

METHODS = ("oracle_bp", "dfa", "vec", "scalar_cb", "state_bridge")
SMALL: Cell = {"seed": 3, "num_blocks": 3, "w2_std": 0.2, "batch_size": 16, "train_epochs": 1, "lr": 3e-3}
STEP: Cell = {"step_weight_decay": 0.1, "step_noise": 0.02}
NETWORKS: dict[str, Cell] = {
    "conv": {"network": "conv", "d_hidden": 4, "grid": 4},
    "transformer": {"network": "transformer", "d_hidden": 6, "grid": 2, "heads": 2, "head_width": 3},
    "relu without biases": {"d_hidden": 12, "activation": "relu", "bias": False},
    "post-norm tanh": {"d_hidden": 12, "activation": "tanh", "norm": "post", "expansion": 2},
    "silu without norm": {"d_hidden": 12, "activation": "silu", "norm": "none"},
}


def cells_of(name: str) -> list[Cell]:
    """A few of each experiment: every method, and what treats blocks and head apart."""
    fitted = [{"method": method, "fit_epochs": 1 if method in METHODS[2:] else None} for method in METHODS]
    if name == "linesearch":
        return [
            cell | {"eta": 0.1, "norm_mode": "norm", **more}
            for cell in fitted
            for more in ({"update_range": "all"}, {"update_range": "last1", "update_head": "always", **STEP})
        ]
    if name == "snapshot_time":
        return [*fitted, fitted[2] | {"update_range": "all", "residual_add": False}]
    if name == "exploitability":
        rules: list[Cell] = [{"rule": "cosine"}, {"rule": "target_shift", "kappa": 0.3}]
        return [*(cell | {"k": 3, "eta": 0.03} for cell in fitted), *(fitted[2] | rule | STEP for rule in rules)]
    if name == "credit_recovery":
        return [*fitted, fitted[3] | {"cb_source": "delta_L"}, fitted[1] | {"residual_add": False}]
    return [{"train_rule": "bp"}, {"train_rule": "dfa"}]


def check(network: Cell, dataset: DatasetRef, data: ImageData, **base: Any) -> list[str]:
    """Hold every row against its recomputation; gives the experiments that were."""
    made: dict[str, Arrays] = {}
    failures = []
    for name in EXPERIMENTS:
        experiment = registry().experiments[name]
        cells = [SMALL | base | network | {"dataset": dataset.name} | cell for cell in cells_of(name)]
        for cell, (params, artifacts, rows) in zip(
            cells, measured(experiment, cells, dataset, data, made), strict=True
        ):
            if (worst := agrees(expected_rows(name, params, artifacts), rows)).ratio > 1:
                failures.append((name, worst, cell))
    assert not failures, f"{len(failures)} cells disagree, such as {failures[:5]}"
    return list(EXPERIMENTS)


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS.keys())
def test_small_images(network: Cell, tiny_data: ImageData) -> None:
    dataset = DatasetRef("tiny", "d" * 64, 200, 60, 5, (3, 8, 8), {"package": "none"})
    assert len(check(network, dataset, tiny_data)) == 5


@pytest.fixture(scope="module")
def cifar(cifar_dir: Path) -> tuple[DatasetRef, ImageData]:
    """The first 640 training and 128 test images of CIFAR-10."""
    parts = []
    for split, count in (("train", 640), ("test", 128)):
        table = pq.read_table(cifar_dir / f"{split}.parquet").slice(0, count)
        image = next(name for name in table.column_names if name not in ("label", "labels"))
        label = next(name for name in table.column_names if name in ("label", "labels"))
        pixels = [np.asarray(Image.open(io.BytesIO(value["bytes"]))) for value in table[image].to_pylist()]
        parts += [torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()]
        parts += [torch.tensor(table[label].to_pylist())]
    x_train, y_train, x_test, y_test = parts
    mean, std = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.2470, 0.2435, 0.2616])
    dataset = DatasetRef("cifar", "c" * 64, 640, 128, 10, (3, 32, 32), {"package": "none"})
    return dataset, ImageData(x_train, y_train, x_test, y_test, mean, std, num_classes=10)


@pytest.mark.parametrize("network", ["conv", "transformer"])
def test_cifar(network: str, cifar: tuple[DatasetRef, ImageData]) -> None:
    """The networks at their defaults, on real images."""
    assert len(check({"network": network, "d_hidden": 8}, *cifar, num_blocks=2, batch_size=32)) == 5
