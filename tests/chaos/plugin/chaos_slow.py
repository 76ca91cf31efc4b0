"""A plugin whose cells take time but no processor: long calls that write artifacts and rows with all kinds of values.

All values are made from the parameters by SHA-256, so that they are the same in every run, to the last bit.
"""

from __future__ import annotations

import hashlib
import math
import struct
import time
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import Field

from creditgrid.core.experiment import Column, Experiment, Params, Row, Summary
from creditgrid.core.task import Inputs, Output, Progress, Task, TaskKind

LAYERS = 2
"""Rows of a cell."""


class SlowParams(Params):
    """Parameters of a cell that takes its time."""

    x: int = Field(description="Any number.")
    scale: float = Field(1.0, description="Any other.")
    stage: int = Field(0, description="The stage that the cell needs.")
    group: int = Field(0, description="Cells of one group are one call.")
    pause_ms: float = Field(10.0, ge=0, description="The time of a cell, ms.")
    stage_pause_ms: float = Field(50.0, ge=0, description="The time of a stage, ms.")


def draws(*of: object) -> Iterator[float]:
    """Doubles in [0, 1) that depend on the arguments alone."""
    number = 0
    while True:
        digest = hashlib.sha256(f"{of}/{number}".encode()).digest()
        yield (struct.unpack("<Q", digest[:8])[0] >> 11) / 2**53
        number += 1


def run(tasks: Sequence[Task], inputs: Inputs, device: Any) -> Iterator[Progress | Output]:
    """Some rows for each cell; a few numbers are not finite, negative zero, or very small."""
    for number, task in enumerate(tasks):
        time.sleep(task.params["pause_ms"] / 1000)
        yield Progress(number, len(tasks), "at work")
        (stage,) = (float(inputs[key]["values"].sum()) for key in task.parents.values())
        rows = []
        for layer in range(LAYERS):
            drawn = draws(task.key, layer)
            value = (next(drawn) - 0.5) * task.params["scale"] + stage
            odd = next(drawn)
            special = math.nan if odd < 0.05 else -0.0 if odd < 0.1 else 5e-324 if odd < 0.15 else 1e300 * odd
            rows.append(
                {
                    "layer": layer,
                    "value": value,
                    "odd": special,
                    "count": int(next(drawn) * 2**40),
                    "word": f"ä{odd:.3f}",
                }
            )
        yield Output(task.key, rows=rows)


def run_stage(tasks: Sequence[Task], inputs: Inputs, device: Any) -> Iterator[Progress | Output]:
    """One artifact for each stage, one after the other."""
    import numpy as np

    for number, task in enumerate(tasks):
        time.sleep(task.params["pause_ms"] / 1000)
        yield Progress(number, len(tasks), "making a stage")
        drawn = draws("stage", task.key)
        yield Output(task.key, arrays={"values": np.array([next(drawn) for _ in range(1000)], np.float64)})


def cell(params: SlowParams, dataset: object) -> tuple[Task, Sequence[Task]]:
    """The cell and its stage; the stages of one group are one call."""
    stage = STAGE.task({"stage": params.stage, "pause_ms": params.stage_pause_ms}, group=(params.stage // 4,))
    return MEASURE.task(dict(params.__dict__), {"stage": stage}, group=(params.group,)), (stage,)


def summarise(rows: Sequence[Row]) -> Summary:
    """How many rows there are."""
    return Summary("Rows", ["n"], [{"n": len(rows)}], [])


STAGE = TaskKind("chaos_stage", 1, run_stage, max_group=4)
MEASURE = TaskKind("chaos_slow", 1, run, max_group=500)
EXPERIMENT = Experiment(
    name="chaos_slow",
    title="Takes its time",
    params=SlowParams,
    columns={
        "layer": Column("int64", "Row of the cell, from 0."),
        "value": Column("float64", "A number."),
        "odd": Column("float64", "A number that may be odd."),
        "count": Column("int64", "A whole number."),
        "word": Column("string", "A word."),
    },
    measure=MEASURE,
    cell=cell,
    summarise=summarise,
    kinds=(STAGE,),
)
