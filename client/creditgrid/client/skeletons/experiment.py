"""my_unit: an experiment: parameters, columns, tasks and a summary in one file.

It is part of a package, which registers it in its pyproject.toml:

    [project.entry-points."creditgrid.experiments"]
    my_unit = "my_package.my_unit:EXPERIMENT"

After `pip install -e .`: `creditgrid check my_unit`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from creditgrid.core.experiment import Axis, Chart, Column, Experiment, Params, Row, Summary
from creditgrid.core.task import Inputs, Output, Progress, Task, TaskKind

if TYPE_CHECKING:
    import torch  # at module level only for types: plans are made on machines without torch


class MyUnitParams(Params):
    """Parameters of a cell; each may be fixed or an axis. Each has a type, bounds, and a description with its unit."""

    size: int = Field(16, ge=1, le=4096, description="Side of the random matrix.")
    seed: int = Field(0, ge=0, lt=2**63, description="Seed of the matrix.")


COLUMNS = {"largest": Column("float64", "Largest singular value, dimensionless.")}


def cell(params: MyUnitParams, _dataset: None) -> tuple[Task, Sequence[Task]]:
    """The task that measures one cell, and all that it depends on. See creditgrid.core.experiments for stages."""
    return MEASURE.task(params.model_dump(), group=(params.size,)), ()


def measure(tasks: Sequence[Task], _inputs: Inputs, device: torch.device) -> Iterator[Progress | Output]:
    """The rows of tasks of one group; draw from generators alone, so that equal tasks have equal rows."""
    import torch

    for done, task in enumerate(tasks):
        draws = torch.Generator().manual_seed(task.params["seed"])
        matrix = torch.randn(task.params["size"], task.params["size"], generator=draws, dtype=torch.float64).to(device)
        yield Progress(done, len(tasks), "matrices")
        yield Output(task.key, rows=[{"largest": torch.linalg.matrix_norm(matrix, 2).item()}])


def summarise(rows: Sequence[Row]) -> Summary:
    """A small table for people."""
    lines = [{"size": row["size"], "seed": row["seed"], "largest": row["largest"]} for row in rows]
    return Summary("Largest singular values", ["size", "seed", "largest"], lines, [])


# Raise the version when equal parameters give another result.
MEASURE = TaskKind("my_unit", 1, measure, max_group=64)
CHART = Chart("largest", "Largest singular value", "line", Axis(("size",), "size"), (Axis(("largest",), "σ"),), ())
EXPERIMENT = Experiment("my_unit", "Singular values", MyUnitParams, COLUMNS, MEASURE, cell, summarise, charts=(CHART,))
