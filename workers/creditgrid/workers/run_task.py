"""One task computed alone, to see what it does: ``python -m creditgrid.workers.run_task FOLDER``.

FOLDER holds ``tasks.json``, a list of ``TaskDocument``, of which the last is asked for and the others are what it
stands on, parents first; and ``inputs/KEY.safetensors``, the artifacts that none of them makes. What is made comes
beside them: ``artifacts/``, a store, and for a cell ``rows.arrow``, an Arrow IPC stream.

Standard output carries lines of JSON, each with a ``type``:

============  ================================================================================================
``begun``     ``kind``, ``key``: this task is next
``progress``  ``kind``, ``done``, ``total``, ``note``
``finished``  ``kind``, ``seconds``, ``device``; of a cell ``rows``, a path; of a stage ``artifact``, a path, and
              ``tensors``, {name: {shape, dtype}}
``failed``    ``kind``, ``key``, ``error``, ``traceback``: what the task raised
``refused``   ``error``: this installation cannot compute the task
============  ================================================================================================

Exit status: 0 finished, 1 failed, 2 refused. It is a process of its own because tasks may end theirs; whatever a task
prints goes to standard error.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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
"""Exit status when the task cannot be begun here."""
STDOUT, STDERR = 1, 2
"""File descriptors: libraries write to them past Python."""
TASKS, INPUTS, ARTIFACTS, ROWS = "tasks.json", "inputs", "artifacts", "rows.arrow"

Tell: TypeAlias = Callable[[dict[str, Any]], None]


def main(arguments: Sequence[str]) -> int:
    """Compute the tasks in a folder, tell how it goes, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m creditgrid.workers.run_task")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args(arguments)
    with _channel() as tell:
        try:
            if options.device == "cuda" and not torch.cuda.is_available():
                raise TaskError("there is no CUDA device on this machine that torch can use")
            documents = TypeAdapter(list[TaskDocument]).validate_json((options.folder / TASKS).read_bytes())
            tasks = [(_task(document), Resources(cpu=document.cpu)) for document in documents]
        except TaskError as error:
            tell({"type": "refused", "error": str(error)})
            return REFUSED
        store = ArtifactStore(options.folder.absolute() / ARTIFACTS)
        device = torch.device(options.device)
        computed = all(_compute(task, given, store, device, tell) for task, given in tasks)  # up to the first failure
        return 0 if computed else 1


@contextmanager
def _channel() -> Iterator[Tell]:
    """Writes messages to standard output; what anything else prints there meanwhile goes to standard error."""
    with os.fdopen(os.dup(STDOUT), "w", encoding="utf-8") as channel:

        def tell(message: dict[str, Any]) -> None:
            channel.write(json.dumps(message) + "\n")
            channel.flush()

        os.dup2(STDERR, STDOUT)
        try:
            yield tell
        finally:
            sys.stdout.flush()
            os.dup2(channel.fileno(), STDOUT)


def _task(document: TaskDocument) -> Task:
    """The document's task.

    Raises:
        TaskError: if it is not what its key names, or not what this installation would compute under that name.
    """
    task = Task(**document.model_dump(exclude={"cpu"}))
    if digest(task.payload()) != task.key:
        raise TaskError(f"{task.key} is not the key of this {task.kind}: the document is damaged")
    here = registry().kinds.get(task.kind)
    if here is not None and here.version != task.version:
        raise TaskError(
            f"{task.kind} is at version {here.version} in this installation, and the task was made by version "
            f"{task.version}: install what the service has"
        )
    return task


def _compute(task: Task, given: Resources, store: ArtifactStore, device: torch.device, tell: Tell) -> bool:
    """Run one task by itself; whether it has a result."""
    tell({"type": "begun", "kind": task.kind, "key": task.key})
    call = Call(1, task.kind, [task], sorted(set(task.parents.values())), given)
    inputs = {key: _input(store, key) for key in call.inputs}
    for item in execute(call, inputs, store, device):
        if isinstance(item, Advanced):
            told = {"done": item.done, "total": item.total, "note": item.note}
            tell({"type": "progress", "kind": task.kind, **told})
        elif isinstance(item, Finished):
            made = dict(_made(task, store, item))
            tell({"type": "finished", "kind": task.kind, "seconds": item.seconds, "device": item.device, **made})
            return True
        elif isinstance(item, Failed):
            failure = {"key": task.key, "error": item.error, "traceback": item.traceback}
            tell({"type": "failed", "kind": task.kind, **failure})
    return False


def _input(store: ArtifactStore, key: str) -> Arrays:
    if store.has(key):
        return store.load(key)
    arrays: Arrays = load_file(store.root.parent / INPUTS / f"{key}.safetensors")
    return arrays


def _made(task: Task, store: ArtifactStore, end: Finished) -> Iterator[tuple[str, Any]]:
    if end.rows is not None:
        path = store.root.parent / ROWS
        path.write_bytes(end.rows)
        yield "rows", str(path)
    else:
        yield "artifact", str(store.path(task.key) / TENSORS)
        yield "tensors", store.record(task.key)["tensors"]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
