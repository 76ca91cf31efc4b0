"""A network of a file that a sweep brings, with hidden states of a shape of its own, through every experiment."""

from __future__ import annotations

import math
from typing import Any

import pytest
from in_process import Cell, measured

from creditgrid.core.datasets import DatasetRef
from creditgrid.core.experiments.registry import Registry, registry_with
from creditgrid.core.experiments.stages import code_task
from creditgrid.core.science.data import ImageData
from creditgrid.core.task import Arrays
from creditgrid.core.units.brought import load
from creditgrid.core.units.code import Files, sha256_of, to_arrays
from creditgrid.core.units.known import installed

FILE = '''
import torch
from pydantic import Field
from torch import nn

from creditgrid.core.science.modular_network import ModularNetwork, initialise
from creditgrid.core.units.network import Network


class Stem(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.squeeze = nn.AvgPool2d((shape[1] // 4, shape[2] // 4))
        self.mix = nn.Linear(shape[0], 3)

    def forward(self, x):
        return self.mix(self.squeeze(x).movedim(1, -1)).movedim(-1, 1)


class Mixer(nn.Module):
    """Mixes rows, then channels: (b, 3, 4, 4) -> the same."""

    def __init__(self, slope):
        super().__init__()
        self.slope = slope
        self.rows, self.channels = nn.Linear(4, 4), nn.Linear(3, 3)

    def forward(self, h):
        inner = nn.functional.leaky_relu(self.rows(h), self.slope)
        return self.channels(inner.movedim(1, -1)).movedim(-1, 1)


class Toy(Network):
    """A mixer on 3 x 4 x 4 numbers."""

    name = "toy"
    slope: float = Field(0.1, alias="toy_slope", ge=0, description="Slope below 0.")

    def hidden_shape(self, d_hidden):
        return 3, 4, 4

    def build(self, size, generator):
        with torch.device("meta"):
            stem, blocks = Stem(size.image_shape), [Mixer(self.slope) for _ in range(size.num_blocks)]
            readout = nn.Sequential(nn.Flatten(), nn.LayerNorm(48), nn.Linear(48, size.num_classes))
        network = ModularNetwork(size, (3, 4, 4), stem, blocks, readout)
        initialise(network, generator, last=[block.channels for block in blocks], std=size.w2_std)
        return network
'''
FILES: Files = {"toy.py": FILE.encode()}
DATASET = DatasetRef("tiny", "d" * 64, 200, 60, 5, (3, 8, 8), {"package": "none"})
CELL: Cell = {
    "dataset": "tiny",
    "network": "toy",
    "toy_slope": 0.2,
    "num_blocks": 3,
    "w2_std": 0.2,
    "batch_size": 16,
    "train_epochs": 1,
    "lr": 3e-3,
}
METHODS: list[Cell] = [
    {"method": "oracle_bp"},
    {"method": "dfa"},
    *({"method": method, "fit_epochs": 1} for method in ("vec", "scalar_cb", "state_bridge")),
]


@pytest.fixture(scope="module")
def brought() -> Registry:
    sha256 = sha256_of(FILES)
    return registry_with(installed().with_brought(load(FILES, sha256), sha256))


@pytest.fixture(scope="module")
def made() -> dict[str, Arrays]:
    return {code_task(sha256_of(FILES)).key: to_arrays(FILES)}


def rows(
    brought: Registry, made: dict[str, Arrays], name: str, data: ImageData, cells: list[Cell]
) -> list[list[dict[str, Any]]]:
    found = measured(brought.experiments[name], [CELL | cell for cell in cells], DATASET, data, made)
    for params, artifacts, some in found:
        assert (params["network"], params["toy_slope"]) == ("toy", 0.2)
        assert "code" in artifacts
        assert all(value is None or math.isfinite(value) for row in some for value in row.values())
    return [some for _, _, some in found]


def test_a_checkpoint_and_a_credit_have_the_shape_of_the_hidden_state(
    brought: Registry, made: dict[str, Arrays], tiny_data: ImageData
) -> None:
    cells = [CELL | {"method": "dfa"}]
    ((_, artifacts, _),) = measured(brought.experiments["credit_recovery"], cells, DATASET, tiny_data, made)
    assert artifacts["feedback"]["B.0"].shape == (48, 5)
    assert artifacts["checkpoint"]["blocks.2.rows.weight"].shape == (4, 4)
    assert artifacts["checkpoint"]["size"].tolist() == [3, 8, 8, 5, 3, 256]


def test_linesearch(brought: Registry, made: dict[str, Arrays], tiny_data: ImageData) -> None:
    oracle, *_ = rows(brought, made, "linesearch", tiny_data, [cell | {"eta": 1e-2} for cell in METHODS])
    assert oracle[0]["delta_loss_same"] < -1e-6


def test_snapshot_time(brought: Registry, made: dict[str, Arrays], tiny_data: ImageData) -> None:
    oracle, *_ = rows(brought, made, "snapshot_time", tiny_data, METHODS)
    assert oracle[0]["dl_same_1"] < 0


def test_exploitability(brought: Registry, made: dict[str, Arrays], tiny_data: ImageData) -> None:
    (oracle,), *_ = rows(brought, made, "exploitability", tiny_data, [cell | {"k": 2} for cell in METHODS])
    assert oracle["gamma"] == pytest.approx(1)
    assert oracle["rho"] == pytest.approx(1, abs=1e-3)


def test_credit_recovery(brought: Registry, made: dict[str, Arrays], tiny_data: ImageData) -> None:
    oracle, *_ = rows(brought, made, "credit_recovery", tiny_data, METHODS)
    assert [row["layer"] for row in oracle] == [0, 1, 2]
    assert [row["gamma"] for row in oracle] == pytest.approx([1, 1, 1])


def test_dynamics(brought: Registry, made: dict[str, Arrays], tiny_data: ImageData) -> None:
    of_bp, of_dfa = rows(
        brought, made, "dynamics", tiny_data, [{"train_rule": rule, "train_epochs": 2} for rule in ("bp", "dfa")]
    )
    assert of_bp[-1]["loss"] < of_bp[0]["loss"]
    assert of_dfa[0]["gamma_dfa"] is not None
