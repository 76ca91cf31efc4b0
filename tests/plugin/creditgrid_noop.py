"""A plugin as another package would ship it: an experiment that computes nothing, or fails on request."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from creditgrid.core.experiment import Column, Experiment, Params, Row, Summary
from creditgrid.core.task import Inputs, Output, Progress, Task, TaskKind

GATE = "CREDITGRID_TEST_GATE"
"""Names the file that cells wait for."""


class NoopParams(Params):
    """Parameters of a cell that computes nothing."""

    x: int = Field(description="Any number.")
    y: float = Field(0.0, description="Any other.")
    behaviour: Literal["ok", "raise", "nan", "sleep", "wait", "crash", "io"] = Field(
        "ok", description="What the cell does."
    )
    base: Literal["none", "ok", "raise"] = Field(
        "none", description="A stage that the cell depends on, and what it does."
    )
    group: int = Field(0, description="Cells of one group are one call.")


def run(tasks: Sequence[Task], inputs: Inputs, device: Any) -> Iterator[Progress | Output]:
    """One row a cell: twice x."""
    for number, task in enumerate(tasks):
        x, behaviour = task.params["x"], task.params["behaviour"]
        if behaviour == "raise":
            raise ValueError(f"asked to raise at x = {x}")
        if behaviour == "io":
            raise OSError("asked to fail as a disk would")
        if behaviour == "crash":
            os._exit(1)
        if behaviour == "sleep":
            for _ in range(150):  # 15 s, unless it is cancelled
                time.sleep(0.1)
                yield Progress(number, len(tasks), "asleep")
        while behaviour == "wait" and not Path(os.environ[GATE]).exists():
            time.sleep(0.1)
            yield Progress(number, len(tasks), "waiting")
        yield Output(task.key, rows=[{"twice": float("nan") if behaviour == "nan" else 2.0 * x}])


def run_base(tasks: Sequence[Task], inputs: Inputs, device: Any) -> Iterator[Progress | Output]:
    """An artifact of one number."""
    import numpy as np

    for task in tasks:
        if task.params["base"] == "raise":
            raise ValueError("the base was asked to raise")
        yield Output(task.key, arrays={"one": np.ones(1, np.float32)})


def cell(params: NoopParams, dataset: object) -> tuple[Task, Sequence[Task]]:
    """The cell alone, or on a base."""
    if params.base == "none":
        return MEASURE.task(dict(params.__dict__), group=(params.group,)), ()
    base = BASE.task({"base": params.base})
    return MEASURE.task(dict(params.__dict__), {"base": base}, group=(params.group,)), (base,)


def summarise(rows: Sequence[Row]) -> Summary:
    """How many rows there are, and the sum."""
    total = sum(row["twice"] for row in rows if row["twice"] is not None)
    return Summary("Rows", ["n", "total"], [{"n": len(rows), "total": total}], [])


BASE = TaskKind("noop_base", 1, run_base)
MEASURE = TaskKind("noop", 1, run, max_group=2500)
EXPERIMENT = Experiment(
    name="noop",
    title="Computes nothing",
    params=NoopParams,
    columns={"twice": Column("float64", "Twice x.")},
    measure=MEASURE,
    cell=cell,
    summarise=summarise,
    kinds=(BASE,),
)
