"""A plugin whose one stage goes wrong on request, and its process with it: for workers that are processes."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from creditgrid.core.experiment import Column, Experiment, Params, Row, Summary
from creditgrid.core.task import Inputs, Output, Progress, Task, TaskKind

STEP = 2**26


def run(tasks: Sequence[Task], inputs: Inputs, device: Any) -> Iterator[Progress | Output]:
    """The sum of all inputs, unless the parameters have it otherwise."""
    import numpy as np
    import torch

    for task in tasks:
        amount = task.params.get("amount", 0)
        yield Progress(0, 1, str(os.getpid()))
        time.sleep(0.2)  # until what was yielded has left the process
        match task.params["behaviour"]:
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "exit":
                os._exit(3)
            case "sysexit":
                sys.exit(4)
            case "segv":
                ctypes.string_at(0)
            case "swallow":
                end = time.monotonic() + amount
                while time.monotonic() < end:
                    with contextlib.suppress(BaseException):
                        time.sleep(amount)
            case "hold":  # C code that keeps the interpreter for itself
                ctypes.PyDLL(None).sleep(amount)
            case "sleep":
                for _ in range(10 * amount):
                    time.sleep(0.1)
                    yield Progress(0, 1, "asleep")
            case "hog":
                time.sleep(2)  # for its neighbours to start
                taken = [torch.ones(STEP // 4) for _ in range(amount * 2**30 // STEP)]
                time.sleep(20 + len(taken))
            case "array":
                yield Output(task.key, arrays={"sum": np.ones(amount, np.uint8)})
                continue
        total = sum(int(array.sum()) for arrays in inputs.values() for array in arrays.values())
        yield Output(task.key, arrays={"sum": np.asarray(total)})


def measure(tasks: Sequence[Task], inputs: Inputs, device: Any) -> Iterator[Output]:
    """An experiment has cells; nobody asks for these."""
    for task in tasks:
        yield Output(task.key, rows=[{"none": 0.0}])


def cell(params: Params, dataset: object) -> tuple[Task, Sequence[Task]]:
    return MEASURE.task({}), ()


def summarise(rows: Sequence[Row]) -> Summary:
    return Summary("Nothing", [], [], [])


MEASURE = TaskKind("faults", 1, measure)
FAULT = TaskKind("fault", 1, run)
EXPERIMENT = Experiment(
    name="faults",
    title="Goes wrong",
    params=Params,
    columns={"none": Column("float64", "Nothing.")},
    measure=MEASURE,
    cell=cell,
    summarise=summarise,
    kinds=(FAULT,),
)
