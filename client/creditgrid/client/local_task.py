"""One task of a service, computed on this machine to see what it does, in a separate process because it may crash."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import TYPE_CHECKING, Any

from creditgrid.client.errors import DamagedAnswer, NotFound, ParentGone, TaskRefused
from creditgrid.client.local_service import require_server
from creditgrid.client.result import Result
from creditgrid.core.wire import TaskDocument

if TYPE_CHECKING:
    from creditgrid.client.client import Client

PROGRAM = (sys.executable, "-P", "-X", "faulthandler", "-m", "creditgrid.workers.run_task")
"""If a signal ends it, it prints its stack on standard error; it imports nothing from the current folder."""
TASKS, INPUTS = "tasks.json", "inputs"
"""The program's file of tasks and its folder of artifacts."""
STDERR = 2
STOP_TIMEOUT_S = 3.0


@dataclass(frozen=True, slots=True)
class TaskRun:
    """The outcome of a task: ``rows`` of a cell, an ``artifact`` (a safetensors file) of a stage, or an ``error``.

    ``tensors`` are those of the artifact: {name: {"shape": [2, 3], "dtype": "float32"}}. ``key`` and ``kind`` are those
    of the task that failed, which may be an ancestor of ``task``.
    """

    task: TaskDocument
    key: str
    kind: str
    seconds: float | None = None
    device: str | None = None
    rows: Result | None = None
    artifact: Path | None = None
    tensors: dict[str, dict[str, Any]] | None = None
    error: str | None = None
    traceback: str = ""


def compute_task(
    client: Client,
    key: str,
    folder: Path,
    *,
    device: str = "cpu",
    with_parents: bool = False,
    allow_code: bool = False,
    on_progress: Callable[[str], None] = lambda _line: None,
) -> TaskRun:
    """Fetch what the task ``key`` needs from the service and compute it here; an exception of the task is returned.

    With the same machine and software the rows are bit for bit those of a worker.

    Args:
        client: of the service that has the task.
        key: of a stage or a cell.
        folder: an empty one, for the parents' artifacts and the results.
        device: cpu or cuda.
        with_parents: first compute the parents' artifacts that the service no longer has.
        allow_code: also compute a task that executes code which was sent with a sweep.
        on_progress: called with a line about the progress.

    Raises:
        PackageMissing: if only the client is installed.
        NotFound: if the service has no such task.
        ParentGone: if the service does not have an artifact that the task needs.
        TaskRefused: if this installation cannot compute the task.
    """
    require_server()
    asked = client.task(key)
    (folder / INPUTS).mkdir(parents=True)
    try:
        tasks = _fetch(client, asked, folder / INPUTS, with_parents)
    except BaseException:
        shutil.rmtree(folder / INPUTS)  # so that the folder can be used again
        raise
    (folder / TASKS).write_text(json.dumps([task.model_dump() for task in tasks]))
    options = ["--device", device, *(["--allow-code"] if allow_code else [])]
    return _compute(tasks, [*PROGRAM, *options, str(folder.absolute())], on_progress)


def _fetch(client: Client, asked: TaskDocument, inputs: Path, with_parents: bool) -> list[TaskDocument]:
    """Download the artifacts that ``asked`` needs, and return the tasks to compute, parents first."""
    order: list[TaskDocument] = []
    seen: set[str] = set()

    def fetch(task: TaskDocument) -> None:
        for role, parent in task.parents.items():
            if parent in seen:
                continue
            seen.add(parent)
            try:
                client.download_artifact(parent, inputs / f"{parent}.safetensors")
            except (NotFound, DamagedAnswer) as error:
                if not with_parents:
                    raise ParentGone(
                        f"{task.kind} {task.key} needs an artifact ({role}) that is not available: {error}. Compute "
                        f"it here, too, with --with-parents, or alone: creditgrid run-task {parent}"
                    ) from error
                fetch(client.task(parent))
        order.append(task)

    fetch(asked)
    return order


def _compute(tasks: list[TaskDocument], command: list[str], on_progress: Callable[[str], None]) -> TaskRun:
    """Run the program to its end; it ends with this function."""
    current = tasks[-1]
    known = {task.key: task for task in tasks}
    last: dict[str, Any] = {}
    messages, writer = Pipe(duplex=False)
    # What tasks print goes to standard error. In a session of its own, the program does not get Ctrl-C: this process
    # does, and ends the program with all that it started.
    with (
        messages,
        writer,
        subprocess.Popen(
            [*command, str(writer.fileno())],
            pass_fds=[writer.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=STDERR,
            start_new_session=True,
        ) as process,
    ):
        writer.close()
        try:
            for last in _received(messages):
                if last["type"] == "started":
                    current = known[last["key"]]
                elif last["type"] == "progress":
                    on_progress(f"{last['kind']}: {last['done']:,}/{last['total']:,} {last['note']}".rstrip())
            status = process.wait()
        finally:
            _end(process)
    return _outcome(tasks[-1], current, last, status)


def _received(messages: Connection) -> Iterator[dict[str, Any]]:
    """The program's messages until it ends, perhaps in the middle of one."""
    with contextlib.suppress(EOFError, OSError):
        while True:
            yield json.loads(messages.recv_bytes())


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            pass
        finally:  # also after a second Ctrl-C
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def _outcome(asked: TaskDocument, current: TaskDocument, last: dict[str, Any], status: int) -> TaskRun:
    match last.get("type"):
        case "refused":
            raise TaskRefused(last["error"])
        case "failed":
            return TaskRun(asked, current.key, current.kind, error=last["error"], traceback=last["traceback"])
        case "finished" if current.key == asked.key:
            rows = Result.from_stream(Path(last["rows"]).read_bytes()) if "rows" in last else None
            artifact = Path(last["artifact"]) if "artifact" in last else None
            tensors = last.get("tensors")
            return TaskRun(asked, current.key, current.kind, last["seconds"], last["device"], rows, artifact, tensors)
    return TaskRun(asked, current.key, current.kind, error=_death(status))


def _death(status: int) -> str:
    """Why a process ended that did not report it."""
    if status >= 0:
        return f"the task ended its process with exit status {status}, without an exception"
    name = signal.Signals(-status).name
    hint = ", perhaps by the system because it used too much memory" if name == "SIGKILL" else ""
    return f"the task's process was ended by {name}{hint}"
