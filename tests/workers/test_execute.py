"""What a worker does with a call: artifacts, rows, progress, provenance, and every way to fail."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from creditgrid.core.errors import ArtifactError
from creditgrid.core.experiment import Column, Experiment, Params, Summary
from creditgrid.core.experiments.registry import Registry
from creditgrid.core.rows import schema
from creditgrid.core.task import Inputs, Output, Progress, Resources, Task, TaskKind
from creditgrid.workers import execute as module
from creditgrid.workers.artifacts import ArtifactStore
from creditgrid.workers.execute import execute
from creditgrid.workers.runner import Advanced, Call, Failed, Finished, Started

CPU = torch.device("cpu")


class ProbeParams(Params):
    x: int = 0
    dataset: str = ""
    format_version: int = 1


def shape(stage_run: Any, measure_run: Any) -> tuple[Registry, TaskKind, TaskKind]:
    """A registry of one experiment whose stage and measurement run these functions."""
    stage, measure = TaskKind("stage", 1, stage_run), TaskKind("probe_it", 1, measure_run)
    experiment = Experiment(
        "probe_it",
        "Probe",
        ProbeParams,
        {"loss": Column("float64", "Nats."), "layer": Column("int64", "Index.")},
        measure,
        lambda params, dataset: (measure.task({}), ()),
        lambda rows: Summary("", [], [], []),
        (stage,),
    )
    return (
        Registry({"probe_it": experiment}, {"stage": stage, "probe_it": measure}, {"bad": "it is bad"}),
        stage,
        measure,
    )


Body = Callable[[Sequence[Task], Inputs], Iterator[Progress | Output]]


@pytest.fixture
def perform(monkeypatch: pytest.MonkeyPatch, store: ArtifactStore) -> Callable[..., list[Any]]:
    """Runs a call of four tasks of a kind with the given function, and returns everything that it yields."""

    def go(which: str, body: Body, inputs: Inputs | None = None, **changes: Any) -> list[Any]:
        def run(tasks: Sequence[Task], inputs: Inputs, device: torch.device) -> Iterator[Progress | Output]:
            assert device is CPU
            yield from body(tasks, inputs)

        known, stage, measure = shape(run, run)
        monkeypatch.setattr(module, "registry", lambda: known)
        made = stage if which == "stage" else measure
        tasks = [made.task({"x": x}, source={"dataset": "pictures"}) for x in range(4)]
        call = Call(7, which, tasks, [], Resources(cpu=2), 3, {"sweep": "s1"})
        for name, value in changes.items():
            object.__setattr__(call, name, value)
        return list(execute(call, inputs or {}, store, CPU))

    return go


def rows_of(finished: Finished) -> list[dict[str, Any]]:
    assert finished.rows is not None
    rows: list[dict[str, Any]] = pa.ipc.open_stream(finished.rows).read_all().to_pylist()
    return rows


def rows_for(tasks: Sequence[Task], loss: float = 0.5) -> Iterator[Output]:
    for task in tasks:
        yield Output(task.key, rows=[{"loss": loss, "layer": 0}, {"loss": loss, "layer": 1}])


# -- what goes well ------------------------------------------------------------------------------------------------


def test_a_measurement_ends_with_rows_that_have_their_provenance(perform: Any) -> None:
    before = datetime.now(UTC)
    started, finished = perform("probe_it", lambda tasks, inputs: rows_for(tasks))
    assert isinstance(started, Started)
    assert isinstance(finished, Finished)
    assert (started.call, finished.call) == (7, 7)
    assert started.device.startswith("cpu (")
    assert finished.diverged == []
    assert finished.sizes == {}
    rows = rows_of(finished)
    known, _, measure = shape(None, None)
    assert pa.ipc.open_stream(finished.rows).schema == schema(known.experiments["probe_it"])
    keys = [measure.task({"x": x}).key for x in range(4)]
    assert [(row["cell"], row["x"], row["layer"]) for row in rows] == [
        (keys[x], x, n) for x in range(4) for n in (0, 1)
    ]
    for row in rows:
        assert (row["sweep"], row["experiment"], row["dataset"], row["attempt"]) == ("s1", "probe_it", "pictures", 3)
        assert (row["task"], row["parents"], row["kind_version"], row["parent_versions"]) == (
            row["cell"],
            "{}",
            1,
            "{}",
        )
        assert (row["host"], row["device"]) == (started.host, started.device)
        assert row["torch"] == version("torch")
        assert row["version"]
        assert before - timedelta(seconds=1) <= row["started_at"] <= datetime.now(UTC)
        assert 0 < row["seconds"] <= finished.seconds / 4
        assert row["diverged"] is False


def test_a_row_holds_every_parameter_and_no_version_of_a_unit(
    monkeypatch: pytest.MonkeyPatch, store: ArtifactStore
) -> None:
    """A parameter whose name ends as those versions do was null in its rows."""
    known, _, measure = shape(None, lambda tasks, inputs, device: rows_for(tasks))
    monkeypatch.setattr(module, "registry", lambda: known)
    task = measure.task({"x": 1, "format_version": 2, "measurements": {}})
    _, finished = execute(Call(1, "probe_it", [task], [], Resources(cpu=1)), {}, store, CPU)
    assert [row["format_version"] for row in rows_of(finished)] == [2, 2]


def test_a_stages_artifact_is_in_the_store_before_it_is_yielded(perform: Any, store: ArtifactStore) -> None:
    seen: list[bool] = []

    def body(tasks: Sequence[Task], inputs: Inputs) -> Iterator[Output]:
        for number, task in enumerate(tasks):
            yield Output(task.key, arrays={"w": np.full(number + 1, 2.0)}, info={"loss": math.nan, "accuracy": 0.5})
            seen.append(store.has(task.key))

    _, *made, finished = perform("stage", body)
    assert seen == [True] * 4
    assert finished.rows is None
    tasks = [shape(None, None)[1].task({"x": x}) for x in range(4)]
    assert [key for key, _ in made] == [task.key for task in tasks]
    assert finished.sizes == {key: len(store.read(key)) for key, _ in made}
    for task, (_, arrays) in zip(tasks, made, strict=True):
        np.testing.assert_array_equal(store.load(task.key)["w"], arrays["w"])
        record = store.record(task.key)
        assert record["payload"] == task.payload()
        assert record["provenance"]["info"] == {"loss": "nan", "accuracy": 0.5}
        assert record["provenance"]["attempt"] == 3
        assert record["provenance"]["torch"] == version("torch")


def test_inputs_reach_the_task(perform: Any) -> None:
    given = {"k": {"w": np.ones(2)}}

    def body(tasks: Sequence[Task], inputs: Inputs) -> Iterator[Output]:
        assert inputs is given
        yield from rows_for(tasks)

    assert isinstance(perform("probe_it", body, given)[-1], Finished)


def test_progress_is_reported_at_readable_intervals(perform: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(100.0, 0.1)
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(clock))

    def body(tasks: Sequence[Task], inputs: Inputs) -> Iterator[Progress | Output]:
        for done in range(50):
            yield Progress(done, 50, f"step {done}")
        yield from rows_for(tasks)

    reported = [item for item in perform("probe_it", body) if isinstance(item, Advanced)]
    assert 5 <= len(reported) <= 12
    assert reported[0] == Advanced(7, 0, 50, "step 0")
    assert [item.done for item in reported] == sorted({item.done for item in reported})


def test_cells_with_numbers_that_are_not_finite_are_named(perform: Any) -> None:
    def body(tasks: Sequence[Task], inputs: Inputs) -> Iterator[Output]:
        for task in tasks:
            bad = task.params["x"] % 2 == 1
            yield Output(task.key, rows=[{"loss": 1.0}, {"loss": math.inf if bad else 1.0}])

    *_, finished = perform("probe_it", body)
    measure = shape(None, None)[2]
    assert sorted(finished.diverged) == sorted(measure.task({"x": x}).key for x in (1, 3))
    assert [row["loss"] for row in rows_of(finished)] == [1.0, 1.0, 1.0, None] * 2
    assert [row["diverged"] for row in rows_of(finished)] == [False, False, False, True] * 2


def test_torch_gets_the_threads_of_the_call_and_is_deterministic(perform: Any) -> None:
    seen: list[tuple[int, bool]] = []

    def body(tasks: Sequence[Task], inputs: Inputs) -> Iterator[Output]:
        seen.append((torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()))
        yield from rows_for(tasks)

    perform("probe_it", body)
    perform("probe_it", body, resources=Resources(cpu=0.5))
    assert seen == [(2, True), (1, True)]


# -- what fails ----------------------------------------------------------------------------------------------------


def failure(items: list[Any]) -> Failed:
    assert isinstance(items[0], Started)
    assert isinstance(items[-1], Failed)
    assert items[-1].call == 7
    return items[-1]


def raising(error: BaseException, after: int = 0) -> Body:
    def body(tasks: Sequence[Task], inputs: Inputs) -> Iterator[Output]:
        for task in tasks[:after]:
            yield Output(task.key, arrays={"w": np.ones(1)})
        raise error

    return body


def unwritten() -> ArtifactError:
    error = ArtifactError("cannot be written")
    error.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    return error


@pytest.mark.parametrize(
    ("error", "text", "transient"),
    [
        (ValueError("on request"), "ValueError: on request", False),
        (ValueError("two\nlines"), "ValueError: two", False),
        (ValueError(), "ValueError:", False),
        (KeyError("k"), "KeyError: 'k'", False),
        (AssertionError(), "AssertionError:", False),
        (ArtifactError("is strange"), "ArtifactError: is strange", False),
        (OSError(errno.EIO, "Input/output error"), "OSError: [Errno 5] Input/output error", True),
        (ConnectionResetError("gone"), "ConnectionResetError: gone", True),
        (unwritten(), "ArtifactError: cannot be written", True),
        (MemoryError(), "out of memory:", True),
        (torch.OutOfMemoryError("CUDA out of memory"), "out of memory: CUDA out of memory", True),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried"), "out of memory: DefaultCPUAllocator", True),
    ],
    ids=repr,
)
def test_what_a_task_raises_is_reported_in_one_line_with_its_traceback(
    perform: Any, error: Exception, text: str, transient: bool
) -> None:
    failed = failure(perform("stage", raising(error)))
    assert failed.error.startswith(text)
    assert "\n" not in failed.error
    assert failed.transient is transient
    assert failed.stored == ()
    assert failed.host
    assert "Traceback" in failed.traceback
    assert "raise error" in failed.traceback


def test_artifacts_saved_before_the_failure_are_named(perform: Any, store: ArtifactStore) -> None:
    items = perform("stage", raising(ValueError("then"), after=2))
    failed = failure(items)
    assert list(failed.stored) == [key for key, _ in items[1:-1]]
    assert len(failed.stored) == 2
    assert all(store.has(key) for key in failed.stored)


def foreign(tasks: Sequence[Task], inputs: Inputs) -> Iterator[Output]:
    yield Output("f" * 64, rows=[{"loss": 1.0}])


def twice(tasks: Sequence[Task], inputs: Inputs) -> Iterator[Output]:
    yield from rows_for([tasks[0], tasks[0]])


def some(tasks: Sequence[Task], inputs: Inputs) -> Iterator[Output]:
    yield from rows_for(tasks[:3])


def no_rows(tasks: Sequence[Task], inputs: Inputs) -> Iterator[Output]:
    yield Output(tasks[0].key, rows=[])


def neither(tasks: Sequence[Task], inputs: Inputs) -> Iterator[Output]:
    yield Output(tasks[0].key)


def undeclared(tasks: Sequence[Task], inputs: Inputs) -> Iterator[Output]:
    for task in tasks:
        yield Output(task.key, rows=[{"loss": 1.0, "lost": 2.0}])


def usurping(tasks: Sequence[Task], inputs: Inputs) -> Iterator[Output]:
    for task in tasks:
        yield Output(task.key, rows=[{"loss": 1.0, "x": 99}])


def words(tasks: Sequence[Task], inputs: Inputs) -> Iterator[Output]:
    for task in tasks:
        yield Output(task.key, rows=[{"loss": "low"}])


@pytest.mark.parametrize(
    ("kind", "body", "text"),
    [
        (
            "probe_it",
            foreign,
            "TaskError: probe_it yielded ffffffffffff, which it was not asked for, or already yielded",
        ),
        ("probe_it", twice, "which it was not asked for, or already yielded"),
        ("probe_it", some, "TaskError: probe_it ended without a result for 1 of 4 tasks"),
        ("probe_it", no_rows, "yielded no row for"),
        ("probe_it", neither, "yielded no row for"),
        ("stage", neither, "yielded no arrays for"),
        ("stage", lambda tasks, inputs: rows_for(tasks), "yielded no arrays for"),
        ("probe_it", undeclared, "TaskError: probe_it yielded columns it does not declare: lost"),
        ("probe_it", usurping, "yielded columns it does not declare: x"),
        ("probe_it", words, "ValueError: a row of probe_it does not fit its columns"),
    ],
)
def test_a_kind_that_breaks_its_contract_fails(perform: Any, kind: str, body: Body, text: str) -> None:
    failed = failure(perform(kind, body))
    assert text in failed.error
    assert not failed.transient


def test_a_kind_that_is_not_installed_here_is_named_with_what_is_broken(perform: Any) -> None:
    failed = failure(perform("stage", raising(ValueError()), kind="elsewhere"))
    assert failed.error == (
        "TaskError: this worker knows no task kind 'elsewhere': is its package installed here?; "
        "bad cannot be used: it is bad"
    )


def test_a_task_that_an_older_installation_planned_is_not_computed(
    monkeypatch: pytest.MonkeyPatch, store: ArtifactStore
) -> None:
    planned, _, _ = shape(None, None)
    tasks = [planned.kinds["stage"].task({"estimator": name}) for name in ("scalar_cb", "vec")]

    def run(tasks: Sequence[Task], inputs: Inputs, device: torch.device) -> Iterator[Output]:
        for task in tasks:
            yield Output(task.key, arrays={"a": np.zeros(1)})

    known = {"stage": TaskKind("stage", 1, run, version_by=lambda params: 2 if params["estimator"] == "vec" else 1)}
    monkeypatch.setattr(module, "registry", lambda: Registry({}, known, {}))
    failed = failure(list(execute(Call(7, "stage", tasks, [], Resources()), {}, store, CPU)))
    assert failed.error.startswith(
        f"TaskError: stage {tasks[1].key[:12]} is a task of version 1, and this installation"
    )
    assert "submit or retry the sweep" in failed.error
    assert not failed.transient
    assert not any(store.has(task.key) for task in tasks)
    *_, end = execute(Call(8, "stage", tasks[:1], [], Resources()), {}, store, CPU)
    assert isinstance(end, Finished)


def test_a_task_of_another_version_of_a_unit_is_not_computed(
    monkeypatch: pytest.MonkeyPatch, store: ArtifactStore
) -> None:
    """A package with a raised version was installed after the plan: its rows would have the old version's key."""

    class Versioned(ProbeParams):
        @classmethod
        def unit_versions(cls, values: Any) -> dict[str, int]:
            return {"method_version": 3}

    known, _, measure = shape(None, lambda tasks, inputs, device: rows_for(tasks))
    experiment = replace(known.experiments["probe_it"], params=Versioned)
    monkeypatch.setattr(module, "registry", lambda: replace(known, experiments={"probe_it": experiment}))
    old, new = (measure.task({"x": 1, **said}) for said in ({"method_version": 2}, {"method_version": 3}))
    failed = failure(list(execute(Call(7, "probe_it", [old], [], Resources()), {}, store, CPU)))
    assert "was planned with method_version 2, and it is 3 here" in failed.error
    assert not failed.transient
    *_, end = execute(Call(2, "probe_it", [new], [], Resources()), {}, store, CPU)
    assert isinstance(end, Finished)


def test_a_cancellation_is_not_swallowed(perform: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        perform("stage", raising(KeyboardInterrupt()))


def test_rows_hold_the_parents_and_all_versions(monkeypatch: pytest.MonkeyPatch, store: ArtifactStore) -> None:
    known, _, measure = shape(None, lambda tasks, inputs, device: rows_for(tasks))
    monkeypatch.setattr(module, "registry", lambda: known)
    parent = TaskKind("stage", 4, None).task({"x": 1})
    new = measure.task({"x": 1}, {"role": parent})
    planned_before = dataclasses.replace(measure.task({"x": 2}, {"role": parent}), parent_versions=None)
    *_, finished = execute(Call(1, "probe_it", [new, planned_before], [parent.key], Resources()), {}, store, CPU)
    assert isinstance(finished, Finished)
    found = [(row["kind_version"], row["parent_versions"]) for row in rows_of(finished) if row["layer"] == 0]
    assert found == [(1, '{"role":4}'), (1, None)]
    assert {row["parents"] for row in rows_of(finished)} == {json.dumps({"role": parent.key}, separators=(",", ":"))}
