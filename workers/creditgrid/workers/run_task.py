"""One task computed alone: ``python -m creditgrid.workers.run_task FOLDER FD``.

FOLDER holds ``tasks.json``, a list of ``TaskDocument``: the last task is wanted, the others are ancestors that are
computed before it, parents first. ``inputs/KEY.safetensors`` are the artifacts that none of them makes. Results are
written beside these: ``artifacts/``, a store, and for a cell ``rows.arrow``, an Arrow IPC stream.

FD is the descriptor of a ``multiprocessing`` connection to the parent process. Its messages are JSON objects, each with
a ``type``:

============  ================================================================================================
``started``   ``kind``, ``key``: this task is next
``progress``  ``kind``, ``done``, ``total``, ``note``
``finished``  ``kind``, ``seconds``, ``device``; of a cell ``rows``, a path; of a stage ``artifact``, a path, and
              ``tensors``, {name: {shape, dtype}}
``failed``    ``kind``, ``key``, ``error``, ``traceback``: what the task raised
``refused``   ``error``: this installation cannot compute the task
============  ================================================================================================

Exit status: 0 finished, 1 failed, 2 refused. The program is a process of its own because tasks may end theirs.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeAlias

import torch
from pydantic import TypeAdapter
from safetensors.numpy import load_file

from creditgrid.core.errors import TaskError
from creditgrid.core.experiments.registry import registry
from creditgrid.core.fingerprint import digest
from creditgrid.core.task import Arrays, Resources, Task
from creditgrid.core.wire import TaskDocument
from creditgrid.workers.artifacts import TENSORS, ArtifactStore
from creditgrid.workers.execute import execute
from creditgrid.workers.runner import Advanced, Call, Failed, Finished

REFUSED = 2
"""Exit status when this installation cannot compute the task."""
TASKS, INPUTS, ARTIFACTS, ROWS = "tasks.json", "inputs", "artifacts", "rows.arrow"

Send: TypeAlias = Callable[..., None]
"""Sends a message of a type, with its fields as keywords."""


def main(arguments: Sequence[str]) -> int:
    """Compute the tasks in a folder, report on them, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m creditgrid.workers.run_task")
    parser.add_argument("folder", type=Path)
    parser.add_argument("messages", type=int)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--allow-code", action="store_true")
    options = parser.parse_args(arguments)
    os.set_inheritable(options.messages, False)  # what a task starts must not hold the connection open
    with Connection(options.messages, readable=False) as messages:

        def send(message: str, **fields: Any) -> None:
            messages.send_bytes(json.dumps({"type": message, **fields}).encode())

        try:
            if options.device == "cuda" and not torch.cuda.is_available():
                raise TaskError("there is no CUDA device on this machine that torch can use")
            documents = TypeAdapter(list[TaskDocument]).validate_json((options.folder / TASKS).read_bytes())
            tasks = [(_task(document), Resources(cpu=document.cpu)) for document in documents]
            if not options.allow_code and (own := [task for task, _ in tasks if "code" in task.parents]):
                raise TaskError(
                    f"the {own[0].kind} {own[0].key[:12]} executes code that somebody sent with a sweep: read it "
                    "(creditgrid code SHA256 --folder DIR), and add --allow-code to execute it here"
                )
        except TaskError as error:
            send("refused", error=str(error))
            return REFUSED
        store = ArtifactStore(options.folder.absolute() / ARTIFACTS)
        device = torch.device(options.device)
        computed = all(_compute(task, given, store, device, send) for task, given in tasks)  # up to the first failure
        return 0 if computed else 1


def _task(document: TaskDocument) -> Task:
    """The document's task.

    Raises:
        TaskError: if its key does not match it, or if this installation would compute something else under that key.
    """
    task = Task(**document.model_dump(exclude={"cpu"}))
    if digest(task.payload()) != task.key:
        raise TaskError(f"{task.key} is not the key of this {task.kind}: the document is damaged")
    kind = registry().kinds.get(task.kind)
    if kind is not None:
        kind.check_version(task)
    return task


def _compute(task: Task, given: Resources, store: ArtifactStore, device: torch.device, send: Send) -> bool:
    """Compute one task by itself; returns whether it has a result."""
    send("started", kind=task.kind, key=task.key)
    call = Call(1, task.kind, [task], sorted(set(task.parents.values())), given)
    inputs = {key: _input(store, key) for key in call.inputs}
    for item in execute(call, inputs, store, device):
        if isinstance(item, Advanced):
            send("progress", kind=task.kind, done=item.done, total=item.total, note=item.note)
        elif isinstance(item, Finished):
            result = _result(task, store, item)
            send("finished", kind=task.kind, seconds=item.seconds, device=item.device, **result)
            return True
        elif isinstance(item, Failed):
            send("failed", kind=task.kind, key=task.key, error=item.error, traceback=item.traceback)
    return False


def _input(store: ArtifactStore, key: str) -> Arrays:
    if store.has(key):
        return store.load(key)
    arrays: Arrays = load_file(store.root.parent / INPUTS / f"{key}.safetensors")
    return arrays


def _result(task: Task, store: ArtifactStore, end: Finished) -> dict[str, Any]:
    if end.rows is None:
        return {"artifact": str(store.path(task.key) / TENSORS), "tensors": store.record(task.key)["tensors"]}
    path = store.root.parent / ROWS
    path.write_bytes(end.rows)
    return {"rows": str(path)}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
