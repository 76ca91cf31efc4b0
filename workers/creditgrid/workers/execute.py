"""What a worker does with a call: run its kind's function, save artifacts, shape rows, and report how it ends.

The science sees tasks, arrays and a device alone. Caching, provenance and failures are handled here, for every runner.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import re
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, TypeAlias

import pyarrow as pa
import torch

from creditgrid.core.errors import ArtifactCorrupt, ArtifactError, CodeError, TaskError
from creditgrid.core.experiment import Experiment, Params
from creditgrid.core.experiments.code_registry import registry_of
from creditgrid.core.experiments.registry import registry
from creditgrid.core.fingerprint import canonical_json
from creditgrid.core.rows import table
from creditgrid.core.task import Arrays, Inputs, Output, Progress, Saved, Task, TaskKind
from creditgrid.core.units.brought import place_in_code
from creditgrid.core.units.code import from_arrays
from creditgrid.workers.artifacts import ArtifactStore
from creditgrid.workers.curve import CallCurve
from creditgrid.workers.provenance import device_name, host, provenance
from creditgrid.workers.resume_state import ResumeState
from creditgrid.workers.runner import Advanced, Call, Failed, Finished, Started

PROGRESS_EVERY_S = 0.5
"""Progress is reported at most this often: a call may have many thousand steps."""


Item: TypeAlias = Started | Advanced | Finished | Failed | tuple[str, Arrays]


def execute(call: Call, inputs: Inputs, store: ArtifactStore, device: torch.device) -> Iterator[Item]:
    """Run a call to its end; the last item is Finished or Failed. A stored artifact is yielded as (key, arrays)."""
    stored: dict[str, int] = {}
    yield Started(call.id, host(), device_name(device))
    asked = list(call.tasks)
    resume = ResumeState(store.root, asked[-1].group, asked[-1].key)
    curve = CallCurve(call, host(), device_name(device))
    try:
        yield from _perform(call, asked, inputs, store, device, stored=stored, resume=resume, curve=curve)
    except Exception as error:  # whatever the task raised is its result: its cells get it, with the traceback
        resume.hand_over([task.key for task in asked if task.key not in stored])
        text, trace = describe(error), traceback.format_exc()
        yield from curve.long_rest()
        yield Failed(call.id, text, trace, transient(error), host(), tuple(stored), points=curve.unsent())
    except SystemExit as error:  # the task asked to end its process
        place = place_in_code(error)
        said = f"SystemExit: the task asked its process to end with status {error.code}"
        text = said if place is None else f"{place}: {said}"
        trace = traceback.format_exc()
        yield from curve.long_rest()
        yield Failed(call.id, text, trace, True, host(), tuple(stored), crashed=True, points=curve.unsent())


def _perform(
    call: Call,
    asked: Sequence[Task],
    inputs: Inputs,
    store: ArtifactStore,
    device: torch.device,
    *,
    stored: dict[str, int],
    resume: ResumeState,
    curve: CallCurve,
) -> Iterator[Item]:
    """What ``execute`` does when nothing fails; ``stored`` gets the bytes of each artifact that is in the store."""
    started, started_at, reported = time.perf_counter(), datetime.now(UTC), 0.0
    _configure_torch(call, device)
    kind, experiment = _kind_of(call, asked, inputs)
    run = kind.run
    if run is None:
        raise TaskError(f"a {call.kind} is imported and cannot be computed here")
    for task in asked:
        kind.check_version(task)  # an older installation may have planned it
        if experiment is not None:
            _check_units(experiment, task)
    # Artifacts of an interrupted attempt are not made again; its resume state joins the inputs.
    sizes = {task.key: _stored_size(store, task.key) for task in asked} if experiment is None else {}
    stored |= {key: size for key, size in sizes.items() if size is not None}
    tasks = {task.key: task for task in asked if task.key not in stored}
    measured: list[tuple[Task, Output]] = []
    missing = set(tasks)
    for key in stored:  # what was measured until they were made
        curve.restore(store.record(key)["provenance"].get("curve"))
    given = resume.restore(inputs) if tasks else inputs
    curve.restore(resume.curve)
    for item in run(list(tasks.values()), given, device) if tasks else ():
        if isinstance(item, Saved):
            resume.save(item, curve.state)
            continue
        if isinstance(item, Progress):
            curve.take(item)
            if time.perf_counter() - reported >= PROGRESS_EVERY_S:
                reported = time.perf_counter()
                yield curve.advanced()
            continue
        _check(call, item, missing, measures=experiment is not None)
        missing.discard(item.key)
        if experiment is not None:
            measured.append((tasks[item.key], item))
        if item.arrays is not None:
            origin = provenance(call.attempt, started_at, time.perf_counter() - started, device)
            origin |= {"info": _as_json(item.info)} | curve.record(complete=not missing)
            stored[item.key] = store.save(item.key, tasks[item.key].payload(), item.arrays, origin)
            resume.save_next()
            yield item.key, item.arrays
    if missing:
        raise TaskError(f"{call.kind} ended without a result for {len(missing)} of {len(tasks)} tasks")
    origin = provenance(call.attempt, started_at, time.perf_counter() - started, device)
    rows, diverged = (None, []) if experiment is None else _rows(experiment, call, measured, origin)
    resume.delete()
    seconds = time.perf_counter() - started
    yield from curve.long_rest()
    yield Finished(call.id, seconds, host(), device_name(device), rows, stored, diverged, curve.unsent())


def _stored_size(store: ArtifactStore, key: str) -> int | None:
    """Bytes of an artifact; None if it is missing. One with a corrupt record is set aside, and made again."""
    if not store.has(key):
        return None
    try:
        return store.size(key)
    except ArtifactCorrupt:
        with contextlib.suppress(ArtifactCorrupt):
            store.load(key)  # sets it aside
        if store.has(key):
            raise
        return None


def _check(call: Call, item: Output, missing: set[str], *, measures: bool) -> None:
    """Raise TaskError for an output that the kind must not yield."""
    if item.key not in missing:
        raise TaskError(f"{call.kind} yielded {item.key[:12]}, which it was not asked for, or already yielded")
    if measures and not item.rows:
        raise TaskError(f"{call.kind} yielded no row for {item.key[:12]}: every cell has at least one")
    if not measures and item.arrays is None:
        raise TaskError(f"{call.kind} yielded no arrays for {item.key[:12]}: they are the artifact of a stage")


def describe(error: BaseException) -> str:
    """One line that says what happened; running out of memory is named so on either device.

    It starts with the line of brought code that the error has passed through, if there is one.
    """
    if isinstance(error, CodeError):  # it names file and line itself
        return str(error).splitlines()[0]
    name = "out of memory" if _out_of_memory(error) else type(error).__name__
    place = place_in_code(error)
    return f"{'' if place is None else f'{place}: '}{name}: {error}".strip().splitlines()[0]


def transient(error: BaseException) -> bool:
    """Whether the machine is the cause (memory, or I/O, also of an artifact), so that a retry may help."""
    unwritten = isinstance(error, ArtifactError) and isinstance(error.__cause__, OSError)
    return isinstance(error, OSError) or unwritten or _out_of_memory(error)


def _out_of_memory(error: BaseException) -> bool:
    # torch's CPU allocator raises a plain RuntimeError.
    allocator = isinstance(error, RuntimeError) and re.search("(not enough|can't allocate) memory", str(error))
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or bool(allocator)


def _kind_of(call: Call, tasks: Sequence[Task], inputs: Inputs) -> tuple[TaskKind, Experiment | None]:
    """The call's kind, and the experiment that measures with it, if there is one, with the units of its code."""
    code = next((task.parents["code"] for task in tasks if "code" in task.parents), None)
    found = registry() if code is None else registry_of(from_arrays(inputs[code]))
    if call.kind not in found.kinds:
        broken = "".join(f"; {name} cannot be used: {why}" for name, why in sorted(found.broken.items()))
        raise TaskError(f"this worker knows no task kind {call.kind!r}: is its package installed here?{broken}")
    measured_by = {experiment.measure.name: experiment for experiment in found.experiments.values()}
    experiment = measured_by.get(call.kind)
    if experiment is not None:
        try:
            experiment = experiment.measuring(dict.fromkeys(itertools.chain(*map(_measurements, tasks))))
        except ValueError as error:
            raise TaskError(f"this worker cannot measure what the sweep asks for: {error}") from error
    return found.kinds[call.kind], experiment


def _check_units(experiment: Experiment, task: Task) -> None:
    """Check that the units here are of the versions that the task's key holds.

    Raises:
        TaskError: one has another version.
    """
    params = experiment.params
    own = {name: version for name, version in task.params.items() if name.endswith("_version")}
    measured = _measurements(task)
    planned = {**{name: own[name] for name in own.keys() - params.model_fields.keys()}, **measured}
    here = {**params.unit_versions(task.params), **{name: params.measurements[name] for name in measured}}
    for name in planned.keys() | here.keys():
        was, now = planned.get(name, 1), here.get(name, 1)
        if was != now:
            raise TaskError(
                f"{task.kind} {task.key[:12]} was planned with {name} {was}, and it is {now} here, which gives another "
                "result: submit or retry the sweep, or install what the service has"
            )


def _measurements(task: Task) -> Mapping[str, int]:
    found: Mapping[str, int] = task.params.get("measurements", {})
    return found


def _configure_torch(call: Call, device: torch.device) -> None:
    # As many threads as the call has cores, so that calls do not compete, and sums are always made in the same order.
    torch.set_num_threads(max(1, int(call.resources.cpu)))
    # Does what use_deterministic_algorithms(True) does, which would first import the compiler, 3 s in every worker.
    torch.set_deterministic_debug_mode("error")
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = False


def _rows(
    experiment: Experiment, call: Call, measured: Sequence[tuple[Task, Output]], origin: Mapping[str, Any]
) -> tuple[bytes, list[str]]:
    """All rows of the call as an Arrow IPC stream, and the keys of cells with a number that is not finite."""
    rows = [row for _, output in measured for row in output.rows or ()]
    if unknown := set[str]().union(*rows) - experiment.columns.keys():
        raise TaskError(f"{experiment.name} yielded columns it does not declare: {', '.join(sorted(unknown))}")
    constant = {**call.stamp, **origin, "started_at": datetime.fromisoformat(origin["started_at"])}
    # An equal share of the call's time: cells of one call are computed together, so no cell has a time of its own.
    constant |= {"seconds": origin["seconds"] / len(call.tasks), "experiment": experiment.name}
    tasks = [task for task, output in measured for _ in output.rows or ()]
    shaped = table(experiment, rows, _task_columns(tasks, experiment.params), constant)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, shaped.schema) as writer:
        writer.write_table(shaped)
    diverged = shaped.filter(shaped["diverged"])["cell"].unique().to_pylist()
    return sink.getvalue().to_pybytes(), diverged


def _task_columns(tasks: Sequence[Task], params: type[Params]) -> dict[str, list[Any]]:
    """What each row says about its task: key, parents, versions, source and parameters."""
    keys = [task.key for task in tasks]
    found: dict[str, list[Any]] = {
        "cell": keys,
        "task": keys,
        "parents": [_by_role(tuple(task.parents.items())) for task in tasks],
        "kind_version": [task.version for task in tasks],
        "parent_versions": [
            None if task.parent_versions is None else _by_role(tuple(task.parent_versions.items())) for task in tasks
        ],
    }
    values = [params.completed(task.params) for task in tasks]
    names = set[str]().union(*values)
    both = {name for task in tasks for name in task.source}
    identity = {name for name in names if name == "measurements" or name.endswith("_version")}  # of units
    names -= identity.difference(params.model_fields)
    for name in names - both:
        found[name] = [each.get(name) for each in values]
    for name in both:
        found[name] = [each.get(name, task.source.get(name)) for each, task in zip(values, tasks, strict=True)]
    return found


@lru_cache(1024)  # few tasks of a call differ in it
def _by_role(parents: tuple[tuple[str, str | int], ...]) -> str:
    return canonical_json(dict(parents))


def _as_json(info: Mapping[str, Any]) -> dict[str, Any]:
    # A record is JSON, so a loss that is not finite is written as text.
    return {
        name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in info.items()
    }
