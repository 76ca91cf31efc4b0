"""A plugin whose cells print in every way: for tests of logs."""

from __future__ import annotations

import contextlib
import ctypes
import io
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import Field

from creditgrid.core.experiment import Column, Experiment, Params, Row, Summary
from creditgrid.core.task import Inputs, Output, Progress, Task, TaskKind

log = logging.getLogger("creditgrid_output.module")


class OutputParams(Params):
    """Parameters of a cell that prints."""

    behaviour: str = Field("quiet", description="How it prints.")
    amount: int = Field(0, description="How much.")
    seed: int = Field(0, description="Cells of one seed, behaviour and amount are one call.")


def run(tasks: Sequence[Task], inputs: Inputs, device: Any) -> Iterator[Progress | Output]:
    """One row a cell, after printing."""
    for task in tasks:
        yield Progress(0, 1, "prints")
        PRINTS[task.params["behaviour"]](task.params["amount"])
        yield Output(task.key, rows=[{"printed": 1.0}])


def _text(_: int) -> None:
    print("to stdout")
    print("to stderr", file=sys.stderr)
    warnings.warn("a warning", UserWarning, stacklevel=1)
    log.info("a record")
    log.debug("a record of debugging")
    logging.disable(logging.CRITICAL)  # as a careless task may
    logging.getLogger().setLevel(logging.CRITICAL)


def _c(_: int) -> None:
    libc = ctypes.CDLL(None)
    libc.printf(b"from C\n")
    libc.printf(b"without an end")


def _child(_: int) -> None:
    subprocess.run(["/bin/sh", "-c", "echo from a child; echo its error >&2"], check=True)


def _thread(seconds: int) -> None:
    def late() -> None:
        time.sleep(seconds)
        print("a late line")

    threading.Thread(target=late, daemon=True).start()
    print("before the thread")


def _binary(_: int) -> None:
    sys.stdout.buffer.write(bytes(range(256)) + b"\0\xff\xfe\n")
    sys.stdout.buffer.write(b"\x1b[31mred\x1b[2J\x1b]0;title\x07\n")
    sys.stdout.flush()


def _line(length: int) -> None:
    sys.stdout.write("x" * length)
    sys.stdout.flush()
    print("the end of the line")


def _flood(size: int) -> None:
    block = b"0123456789abcde\n" * 2**12
    for _ in range(size // len(block)):
        os.write(1, block)
    print("after the flood")


def _close(_: int) -> None:
    print("before the close")
    os.close(1)
    with contextlib.suppress(OSError):
        os.write(1, b"lost")
    print("on stderr", file=sys.stderr)


def _close_all(_: int) -> None:
    print("before the close")
    os.closerange(3, 1000)
    print("on the descriptors that are left")


def _replace(_: int) -> None:
    sys.stdout = io.StringIO()
    print("to nobody")
    os.write(1, b"to the descriptor\n")


def _slow(lines: int) -> None:
    for number in range(lines):
        print("line", number)
        time.sleep(0.1)


def _raise(_: int) -> None:
    print("before the error")
    raise ValueError("asked to raise")


def _exit(status: int) -> None:
    print("last words")
    os._exit(status)


def _kill(_: int) -> None:
    print("last words")
    os.kill(os.getpid(), signal.SIGKILL)


def _segv(_: int) -> None:
    print("last words")
    ctypes.string_at(0)


PRINTS: Mapping[str, Callable[[int], None]] = {
    "quiet": lambda _: None,
    "text": _text,
    "c": _c,
    "child": _child,
    "thread": _thread,
    "binary": _binary,
    "line": _line,
    "flood": _flood,
    "close": _close,
    "close all": _close_all,
    "replace": _replace,
    "slow": _slow,
    "raise": _raise,
    "exit": _exit,
    "kill": _kill,
    "segv": _segv,
}


def cell(params: OutputParams, dataset: object) -> tuple[Task, Sequence[Task]]:
    identity = dict(params.__dict__)
    return MEASURE.task(identity, group=tuple(identity.values())), ()


def summarise(rows: Sequence[Row]) -> Summary:
    return Summary("Printed", ["n"], [{"n": len(rows)}], [])


MEASURE = TaskKind("output", 1, run)
EXPERIMENT = Experiment(
    name="output",
    title="Prints",
    params=OutputParams,
    columns={"printed": Column("float64", "One.")},
    measure=MEASURE,
    cell=cell,
    summarise=summarise,
)
