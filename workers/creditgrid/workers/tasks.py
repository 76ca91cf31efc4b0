"""What a worker does with a call: run its kind's function, keep artifacts, shape rows, and say how it ends.

The science below sees tasks, arrays and a device; caching, provenance and failure are all here, once, for every runner.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import torch

from creditgrid.core.errors import TaskError
from creditgrid.core.fingerprint import canonical_json
from creditgrid.core.registry import Registry, registry
from creditgrid.core.rows import table
from creditgrid.core.task import Arrays, Inputs, Output, Progress, Task
from creditgrid.workers.artifacts import ArtifactStore
from creditgrid.workers.provenance import device_name, host, software
from creditgrid.workers.runner import Advanced, Call, Failed, Finished, Started

PROGRESS_EVERY_S = 0.5
"""Advance is told at most this often: a call may have many thousand steps."""


def execute(
    call: Call, inputs: Inputs, store: ArtifactStore, device: torch.device
) -> Iterator[Started | Advanced | Finished | Failed | tuple[str, Arrays]]:
    """Run a call to its end; the last item is Finished or Failed. Artifacts are yielded as (key, arrays) once stored."""
    stored: dict[str, int] = {}
    yield Started(call.id, host(), device_name(device))
    began, began_at, told = time.perf_counter(), datetime.now(UTC), 0.0
    try:
        _settle(call, device)
        known = registry()
        tasks = {task.key: task for task in call.tasks}
        measured: list[tuple[Task, Output]] = []
        missing = set(tasks)
        for item in known.kinds[call.kind].run(call.tasks, inputs, device):
            if isinstance(item, Progress):
                if time.perf_counter() - told >= PROGRESS_EVERY_S:
                    told = time.perf_counter()
                    yield Advanced(call.id, item.done, item.total, item.note)
                continue
            if item.key not in missing:
                raise TaskError(f"{call.kind} yielded {item.key[:12]}, which it was not asked for, or twice")
            missing.discard(item.key)
            if item.rows is not None:
                measured.append((tasks[item.key], item))
            if item.arrays is not None:
                provenance = _provenance(call, device, began, began_at) | {"info": _plain(item.info)}
                stored[item.key] = store.save(item.key, tasks[item.key].payload(), item.arrays, provenance)
                yield item.key, item.arrays
        if missing:
            raise TaskError(f"{call.kind} ended without a result for {len(missing)} of {len(tasks)} tasks")
        rows, diverged = _rows(known, call, measured, _provenance(call, device, began, began_at))
        seconds = time.perf_counter() - began
        yield Finished(call.id, seconds, host(), device_name(device), rows, stored, diverged)
    except Exception as error:  # whatever the task raised is its result: it goes to its cells with the traceback
        transient = isinstance(error, OSError)
        yield Failed(call.id, describe(error), traceback.format_exc(), transient, host(), tuple(stored))


def describe(error: BaseException) -> str:
    """One line that says what happened; memory trouble is named as such, on either device."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "not enough memory" in str(error):
        return f"out of memory: {error}".strip().splitlines()[0]
    return f"{type(error).__name__}: {error}"


def _settle(call: Call, device: torch.device) -> None:
    # As many threads as the call was given, so that neighbours do not fight, and the same sums in the same order.
    torch.set_num_threads(max(1, int(call.resources.cpu)))
    torch.use_deterministic_algorithms(True)
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
    known: Registry, call: Call, measured: list[tuple[Task, Output]], provenance: Mapping[str, Any]
) -> tuple[bytes | None, list[str]]:
    if not measured:
        return None, []
    experiment = next(e for e in known.experiments.values() if e.measure.name == call.kind)
    origin = {**call.stamp, **provenance, "started_at": datetime.fromisoformat(provenance["started_at"])}
    # The call's time, shared out: cells of one call are computed together, so no cell has a time of its own.
    origin["seconds"] = provenance["seconds"] / len(call.tasks)
    complete = []
    for task, output in measured:
        own = {
            "cell": task.key,
            "task": task.key,
            "parents": canonical_json(dict(task.parents)),
            **task.source,
            **task.params,
        }
        complete.extend({**origin, **own, "experiment": experiment.name, **row} for row in output.rows or ())
    shaped = table(experiment, complete)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, shaped.schema) as writer:
        writer.write_table(shaped)
    lost = shaped.filter(shaped["diverged"])["cell"].unique().to_pylist()
    return sink.getvalue().to_pybytes(), lost


def _plain(info: Mapping[str, Any]) -> dict[str, Any]:
    # A record is JSON: a loss that is not finite is told as text.
    return {
        name: value if value == value and value not in (float("inf"), -float("inf")) else str(value)
        for name, value in info.items()
    }
