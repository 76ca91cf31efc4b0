"""What a worker does with a call: run its kind's function, keep artifacts, shape rows, and say how it ends.

The science below sees tasks, arrays and a device; caching, provenance and failure are all here, once, for every runner.
"""

from __future__ import annotations

import contextlib
import math
import re
import time
import traceback
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import torch

from creditgrid.core.errors import ArtifactCorrupt, ArtifactError, TaskError
from creditgrid.core.experiment import Experiment
from creditgrid.core.experiments.registry import registry
from creditgrid.core.fingerprint import canonical_json
from creditgrid.core.rows import table
from creditgrid.core.task import Arrays, Inputs, Output, Progress, Saved, Task, TaskKind
from creditgrid.workers.artifacts import ArtifactStore
from creditgrid.workers.provenance import device_name, host, software
from creditgrid.workers.resume_state import ResumeState
from creditgrid.workers.runner import Advanced, Call, Failed, Finished, Started

PROGRESS_EVERY_S = 0.5
"""Advance is told at most this often: a call may have many thousand steps."""


def execute(
    call: Call, inputs: Inputs, store: ArtifactStore, device: torch.device
) -> Iterator[Started | Advanced | Finished | Failed | tuple[str, Arrays]]:
    """Run a call to its end; the last item is Finished or Failed. An artifact comes as (key, arrays) once stored."""
    stored: dict[str, int] = {}
    yield Started(call.id, host(), device_name(device))
    began, began_at, told = time.perf_counter(), datetime.now(UTC), 0.0
    resume = ResumeState(store.root, call.tasks[-1].group, call.tasks[-1].key)
    try:
        _settle(call, device)
        kind, experiment = _known(call)
        run = kind.run
        if run is None:
            raise TaskError(f"a {call.kind} is brought in from outside and cannot be computed here")
        # What an interrupted attempt finished is there; where it stood is in the inputs under the group's key.
        found = {task.key: _stored(store, task.key) for task in call.tasks} if experiment is None else {}
        stored = {key: size for key, size in found.items() if size is not None}
        tasks = {task.key: task for task in call.tasks if task.key not in stored}
        measured: list[tuple[Task, Output]] = []
        missing = set(tasks)
        for item in run(list(tasks.values()), resume.restore(inputs), device) if tasks else ():
            if isinstance(item, Saved):
                resume.save(item)
                continue
            if isinstance(item, Progress):
                if time.perf_counter() - told >= PROGRESS_EVERY_S:
                    told = time.perf_counter()
                    yield Advanced(call.id, item.done, item.total, item.note)
                continue
            _check(call, item, missing, measures=experiment is not None)
            missing.discard(item.key)
            if experiment is not None:
                measured.append((tasks[item.key], item))
            if item.arrays is not None:
                provenance = _provenance(call, device, began, began_at) | {"info": _plain(item.info)}
                stored[item.key] = store.save(item.key, tasks[item.key].payload(), item.arrays, provenance)
                resume.save_next()
                yield item.key, item.arrays
        if missing:
            raise TaskError(f"{call.kind} ended without a result for {len(missing)} of {len(tasks)} tasks")
        rows: bytes | None = None
        diverged: list[str] = []
        if experiment is not None:
            rows, diverged = _rows(experiment, call, measured, _provenance(call, device, began, began_at))
        resume.delete()
        seconds = time.perf_counter() - began
        yield Finished(call.id, seconds, host(), device_name(device), rows, stored, diverged)
    except Exception as error:  # whatever the task raised is its result: it goes to its cells with the traceback
        resume.hand_over([task.key for task in call.tasks if task.key not in stored])
        yield Failed(call.id, describe(error), traceback.format_exc(), transient(error), host(), tuple(stored))
    except SystemExit as error:  # the task would have ended its process
        text = f"SystemExit: the task asked its process to end with status {error.code}"
        yield Failed(call.id, text, traceback.format_exc(), True, host(), tuple(stored), crashed=True)


def _stored(store: ArtifactStore, key: str) -> int | None:
    """Bytes of an artifact that is there; one without a proper record is moved out of its place, to be made again."""
    if not store.has(key):
        return None
    try:
        return store.size(key)
    except ArtifactCorrupt:
        with contextlib.suppress(ArtifactCorrupt):
            store.load(key)  # moves it
        if store.has(key):
            raise
        return None


def _check(call: Call, item: Output, missing: set[str], *, measures: bool) -> None:
    """Raise TaskError for an output that a kind should not have yielded."""
    if item.key not in missing:
        raise TaskError(f"{call.kind} yielded {item.key[:12]}, which it was not asked for, or twice")
    if measures and not item.rows:
        raise TaskError(f"{call.kind} yielded no row for {item.key[:12]}: every cell has one at least")
    if not measures and item.arrays is None:
        raise TaskError(f"{call.kind} yielded no arrays for {item.key[:12]}: they are what a stage is kept as")


def describe(error: BaseException) -> str:
    """One line that says what happened; memory trouble is named as such, on either device."""
    name = "out of memory" if _out_of_memory(error) else type(error).__name__
    return f"{name}: {error}".strip().splitlines()[0]


def transient(error: BaseException) -> bool:
    """Whether the machine is to blame, so that trying again may help: memory, or I/O (also an artifact's)."""
    unwritten = isinstance(error, ArtifactError) and isinstance(error.__cause__, OSError)
    return isinstance(error, OSError) or unwritten or _out_of_memory(error)


def _out_of_memory(error: BaseException) -> bool:
    # torch's CPU allocator raises a plain RuntimeError.
    allocator = isinstance(error, RuntimeError) and re.search("(not enough|can't allocate) memory", str(error))
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or bool(allocator)


def _known(call: Call) -> tuple[TaskKind, Experiment | None]:
    """The call's kind, and the experiment that measures by it, if one does."""
    found = registry()
    if call.kind not in found.kinds:
        broken = "".join(f"; {name} cannot be used: {why}" for name, why in sorted(found.broken.items()))
        raise TaskError(f"this worker knows no task kind {call.kind!r}: is its package installed here?{broken}")
    measured_by = {experiment.measure.name: experiment for experiment in found.experiments.values()}
    return found.kinds[call.kind], measured_by.get(call.kind)


def _settle(call: Call, device: torch.device) -> None:
    # As many threads as the call was given, so that neighbours do not fight, and the same sums in the same order.
    torch.set_num_threads(max(1, int(call.resources.cpu)))
    # As use_deterministic_algorithms(True), which first imports the compiler: 3 s of every worker, for nothing here.
    torch.set_deterministic_debug_mode("error")
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = False


def _provenance(call: Call, device: torch.device, began: float, began_at: datetime) -> dict[str, Any]:
    return {
        **software(),
        "attempt": call.attempt,
        "started_at": began_at.isoformat(),
        "seconds": time.perf_counter() - began,
        "device": device_name(device),
        "host": host(),
    }


def _rows(
    experiment: Experiment, call: Call, measured: list[tuple[Task, Output]], provenance: Mapping[str, Any]
) -> tuple[bytes, list[str]]:
    """All rows of the call as an Arrow IPC stream, and the keys of cells with a number that is not finite."""
    origin = {**call.stamp, **provenance, "started_at": datetime.fromisoformat(provenance["started_at"])}
    # The call's time, shared out: cells of one call are computed together, so no cell has a time of its own.
    origin["seconds"] = provenance["seconds"] / len(call.tasks)
    complete: list[dict[str, Any]] = []
    for task, output in measured:
        own = {
            "cell": task.key,
            "task": task.key,
            "parents": canonical_json(dict(task.parents)),
            **task.source,
            **task.params,
        }
        for row in output.rows or ():
            if stray := row.keys() - experiment.columns.keys():
                raise TaskError(f"{experiment.name} yielded columns it does not declare: {', '.join(sorted(stray))}")
            complete.append({**origin, **own, "experiment": experiment.name, **row})
    shaped = table(experiment, complete)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, shaped.schema) as writer:
        writer.write_table(shaped)
    lost = shaped.filter(shaped["diverged"])["cell"].unique().to_pylist()
    return sink.getvalue().to_pybytes(), lost


def _plain(info: Mapping[str, Any]) -> dict[str, Any]:
    # A record is JSON: a loss that is not finite is told as text.
    return {
        name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in info.items()
    }
