"""Naming in processes of their own: a plan of a million cells keeps no request waiting, and leaves no memory behind.

A fork server imports what naming needs once; each plan is a fork of it, which takes some milliseconds and ends with the
plan. A process that is silent for too long, or whose answer nobody wants any more, is killed. What it sends is
MessagePack, so the service unpickles nothing.
"""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import msgpack
import structlog

from creditgrid.core import errors
from creditgrid.core.datasets import Tables, known_tables, remember_tables
from creditgrid.core.errors import CreditGridError, Fault, SpecError
from creditgrid.core.experiments.code_registry import registry_of
from creditgrid.core.experiments.registry import Registry
from creditgrid.core.naming import Chunk, NamedCell, NamedTask
from creditgrid.core.units.code import Files
from creditgrid.core.work import Cost, Work
from creditgrid.service.planning.confined_process import CONTEXT, Inside, Outside, confined_process
from creditgrid.service.planning.confinement import death
from creditgrid.service.planning.naming import Header, Naming, NamingRequest, Resolve, name, no_code

FIRST_ANSWER_S = 30.0
"""Seconds until a spec is read and validated, and its datasets are opened; a stalled file system takes longer."""
CHUNK_S = 30.0
"""Seconds until the next chunk; one takes some milliseconds."""
LOAD_S = 15.0
"""Seconds that the code of a spec may take to load."""
POLL_S = 0.1
SECRETS = ("CREDITGRID_TOKEN", "CREDITGRID_DATABASE_URL")
"""Environment variables that the process forgets: an experiment's own code runs in it."""
PRELOADED = "creditgrid.service.planning.preloaded"
TORCH = "torch"
ReadCode: TypeAlias = Callable[[str], Files]
"""The files of code by its SHA-256; raises where there are none, or the service takes no code."""

log = structlog.get_logger()


class PlanningError(CreditGridError):
    """The process that names cells has ended, or does not answer."""


def start_fork_server(*, with_torch: bool = False) -> None:
    """Start the fork server, which takes about a second, so that no plan waits for it.

    Args:
        with_torch: import torch there, for code that imports it.
    """
    CONTEXT.set_forkserver_preload([__name__, PRELOADED, *([TORCH] if with_torch else [])])
    from multiprocessing.forkserver import ensure_running

    ensure_running()


class NamingProcesses:
    """Names each request in a process of its own.

    Args:
        resolve: opens a dataset.
        read_code: reads the code that a spec brings. Both are pickled.
    """

    def __init__(self, resolve: Resolve, read_code: ReadCode = no_code) -> None:
        self._resolve, self._read_code = resolve, read_code

    def name(self, request: NamingRequest, check: Callable[[], None]) -> Naming:
        """As ``naming.name``, whose errors it raises.

        Args:
            check: called often while the process works; what it raises ends the process.

        Raises:
            PlanningError: the process died.
            SpecError: reading the spec and its datasets, or one chunk, takes too long.
        """
        with confined_process(_work, request, self._resolve, self._read_code, known_tables()) as process:
            limit = FIRST_ANSWER_S
            while True:
                tag, content = _receive(process, limit, check)
                limit = CHUNK_S
                if tag == "header":
                    header, tables = content
                    remember_tables(tables)
                    yield Header(*header)
                elif tag == "chunk":
                    yield _chunk(*content)
                elif tag == "end":
                    return
                else:
                    raise _error(tag, content)


def _receive(process: Outside, limit_s: float, check: Callable[[], None]) -> tuple[str, Any]:
    deadline = time.monotonic() + limit_s
    while True:
        check()
        if process.answers.poll(POLL_S):
            break
        if time.monotonic() > deadline:
            detail = f"planning stopped: no answer within {limit_s:g} s; is the file system of a dataset slow or away?"
            raise SpecError([Fault(detail, "")])
    try:
        message = process.answers.recv_bytes()
    except EOFError:
        trace, status = process.end()
        if trace:  # it had confined itself to load code
            raise SpecError([Fault(death(trace, status), "/code")]) from None
        text = "the process that plans has died; it may have run out of memory: try a smaller grid"
        raise PlanningError(text) from None
    tag, content = msgpack.unpackb(message, use_list=False, strict_map_key=False)
    return tag, content


def _chunk(
    stages: Sequence[Any], cells: Sequence[Any], texts: Sequence[str], costs: Sequence[Any], faults: Mapping[str, str]
) -> Chunk:
    found = [None if cost is None else _cost(*cost) for cost in costs]
    return Chunk(
        [NamedTask._make((*stage, found[cost])) for *stage, cost in stages],
        [
            NamedCell(number, NamedTask(key, kind, group, parents, params, texts[shared], None, found[cost]))
            for number, key, kind, group, parents, params, shared, cost in cells
        ],
        faults,
    )


def _cost(own: Sequence[float], shared: Sequence[Any], size: float | None) -> Cost:
    return Cost(Work(*own), tuple((name, Work(*part)) for name, part in shared), size)


def _error(tag: str, content: Any) -> CreditGridError:
    if tag == "faults":
        return SpecError([Fault(detail, pointer) for detail, pointer in content])
    kind = getattr(errors, tag, None)
    if isinstance(kind, type) and issubclass(kind, CreditGridError):
        return kind(content)
    log.error("planning failed", traceback=content)
    return PlanningError("an unexpected error while the spec was planned; the service's log has its traceback")


# -- in the process --------------------------------------------------------------------------------------------------


def _work(
    inside: Inside, request: NamingRequest, resolve: Resolve, read_code: ReadCode, known: Sequence[Tables]
) -> None:
    """Send the header, the chunks and an end, or an error instead. The code of a spec is loaded within limits.

    Args:
        known: tables that need not be read again; those that were read go with the header.
    """
    remember_tables(known)
    for secret in SECRETS:
        os.environ.pop(secret, None)

    def send(tag: str, content: Any) -> None:
        inside.answers.send_bytes(msgpack.packb([tag, content]))

    def bring(sha256: str) -> Registry:
        files = read_code(sha256)
        inside.confine()
        with inside.time_limit(LOAD_S, "load"):
            return registry_of(files, sha256)

    try:
        for item in name(request, resolve, bring):
            if isinstance(item, Header):
                said = [item.name, item.experiment, item.priority, item.cells, item.document]
                header = [*said, item.code, list(item.measurements)]
                send("header", [header, [tables for tables in known_tables() if tables not in known]])
            else:
                send("chunk", _packed(item))
        send("end", None)
    except SpecError as error:
        send("faults", [[fault.detail, fault.pointer] for fault in error.faults])
    except CreditGridError as error:
        send(type(error).__name__, str(error))
    except ConnectionError:  # the service wants no more
        return
    except Exception:
        send("unexpected", traceback.format_exc())


def _packed(chunk: Chunk) -> list[Any]:
    """What ``_chunk`` takes. Many cells share one text and one cost, which are sent once."""
    texts: dict[str, int] = {}
    costs: dict[int, int] = {}  # by the cost's id: comparing costs would take long
    found: list[Cost | None] = []

    def number_of(cost: Cost | None) -> int:
        number = costs.setdefault(id(cost), len(found))
        if number == len(found):
            found.append(cost)
        return number

    cells = []
    last, of_last = None, number_of(None)
    for number, task in chunk.cells:
        if task.cost is not last:  # mostly the cell before has the same
            last, of_last = task.cost, number_of(task.cost)
        cells.append([number, *task[:-3], texts.setdefault(task.shared, len(texts)), of_last])
    stages = [[*task[:-1], number_of(task.cost)] for task in chunk.stages]
    return [stages, cells, list(texts), found, chunk.faults]
