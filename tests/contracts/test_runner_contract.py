"""One suite for every runner: what the scheduler may rely on.

The Ray cluster is started once for the module (some seconds), and once more by the test that kills its driver.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import creditgrid_noop as noop
import numpy as np
import pyarrow as pa
import pytest
from runner_kit import Kit, drivers

from creditgrid.core.datasets import resolve
from creditgrid.core.experiments.registry import registry
from creditgrid.core.experiments.stages import data_task, feedback_task
from creditgrid.core.task import Inputs, Output, Resources, Task, TaskKind
from creditgrid.workers.artifacts import RECORD, TENSORS, ArtifactStore
from creditgrid.workers.local_runner import LocalRunner
from creditgrid.workers.ray.runner import RayRunner
from creditgrid.workers.runner import Advanced, Failed, Finished, Lost, Started

WORKERS = 2
RAY = pytest.param("ray", marks=pytest.mark.slow)
ray_alone = pytest.mark.parametrize("kit", [RAY], indirect=True)


@pytest.fixture(scope="module")
def ray_kit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kit]:
    root = tmp_path_factory.mktemp("ray")
    store = ArtifactStore(root / "artifacts")
    runner = RayRunner(store, root / "ray.log", cpus=WORKERS, gpus=0)
    runner.start()
    yield Kit("ray", runner, store)
    runner.stop()
    assert drivers() == []


@pytest.fixture(scope="module")
def local_kit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kit]:
    store = ArtifactStore(tmp_path_factory.mktemp("local") / "artifacts")
    runner = LocalRunner(store, WORKERS)
    runner.start()
    yield Kit("local", runner, store)
    runner.stop()


@pytest.fixture(params=["local", RAY])
def kit(request: pytest.FixtureRequest) -> Kit:
    found: Kit = request.getfixturevalue(f"{request.param}_kit")
    found.ready()
    found.runner.poll(0)
    found.seen.clear()
    return found


def cells(*xs: int, **params: Any) -> list[Task]:
    """Cells of the no-op experiment."""
    return [noop.MEASURE.task(noop.NoopParams(x=x, **params).model_dump()) for x in xs]


def rows_of(end: Finished | Failed) -> list[dict[str, Any]]:
    assert isinstance(end, Finished), end
    assert end.rows is not None
    rows: list[dict[str, Any]] = pa.ipc.open_stream(end.rows).read_all().to_pylist()
    return rows


# -- success -------------------------------------------------------------------------------------------------------


def test_it_reports_its_capacity(kit: Kit) -> None:
    found = kit.runner.capacity()
    assert (found.cpu, found.gpu, found.nodes, found.degraded) == (WORKERS, 0.0, 1, None)


def test_a_poll_without_messages_is_empty_and_waits(kit: Kit) -> None:
    started_at = time.monotonic()
    assert kit.runner.poll(0.3) == []
    assert time.monotonic() - started_at >= 0.25
    started_at = time.monotonic()
    assert kit.runner.poll(0.0) == []
    assert time.monotonic() - started_at < 2


def test_a_call_starts_and_finishes_with_its_rows(kit: Kit) -> None:
    tasks = cells(3, 1, 2)
    call = kit.submit(tasks)
    end = kit.end_of(call)
    assert [type(item) for item in kit.seen] == [Started, Finished]
    (started,) = kit.of(call, Started)
    assert started.host == end.host
    assert started.device.startswith("cpu")
    rows = rows_of(end)
    assert [(row["cell"], row["x"], row["twice"]) for row in rows] == [
        (t.key, t.params["x"], 2.0 * t.params["x"]) for t in tasks
    ]
    assert {(row["sweep"], row["attempt"], row["experiment"]) for row in rows} == {("s1", 2, "noop")}
    assert isinstance(end, Finished)
    assert end.seconds >= 0
    assert list(end.diverged) == []


def test_artifacts_are_in_the_store_when_the_call_has_finished(kit: Kit) -> None:
    tasks = [noop.BASE.task({"base": "ok", "run": kit.name})]
    end = kit.end_of(kit.submit(tasks))
    assert isinstance(end, Finished)
    assert end.rows is None
    assert end.sizes == {tasks[0].key: len(kit.store.read(tasks[0].key))}
    np.testing.assert_array_equal(kit.store.load(tasks[0].key)["one"], np.ones(1, np.float32))


def test_several_calls_run_at_a_time_and_each_ends(kit: Kit) -> None:
    calls = [kit.submit(cells(x)) for x in range(12)]
    kit.until(lambda seen: sum(isinstance(item, Finished) for item in seen) == len(calls))
    for x, call in enumerate(calls):
        assert rows_of(kit.end_of(call))[0]["twice"] == 2.0 * x
        assert len(kit.of(call, Started)) == 1
    sleepers = [kit.submit(cells(x, behaviour="sleep")) for x in range(WORKERS)]
    kit.running(*sleepers)  # at the same time
    for call in sleepers:
        kit.runner.cancel(call)
    assert all(isinstance(kit.end_of(call), Failed) for call in sleepers)


def test_progress_is_reported_while_the_call_runs(kit: Kit) -> None:
    call = kit.submit(cells(1, behaviour="sleep"))
    kit.until(lambda seen: len(kit.of(call, Advanced)) >= 2)
    assert kit.of(call, Advanced)[0] == Advanced(call, 0, 1, "asleep")
    kit.runner.cancel(call)
    kit.end_of(call)


def test_cells_that_diverged_are_named(kit: Kit) -> None:
    tasks = [*cells(1), *cells(2, behaviour="nan")]
    end = kit.end_of(kit.submit(tasks))
    assert isinstance(end, Finished)
    assert list(end.diverged) == [tasks[1].key]
    assert [row["twice"] for row in rows_of(end)] == [2.0, None]


# -- inputs --------------------------------------------------------------------------------------------------------


def digits_and_feedback(seed: int) -> tuple[Task, Task]:
    digits = resolve("digits")
    return data_task(digits), feedback_task(digits, seed=seed, num_blocks=2, d_hidden=5)


def fake_data(kit: Kit, key: str, classes: int) -> None:
    kit.store.save(
        key,
        {},
        {
            "x_train": np.zeros((4, 1, 2, 2), np.uint8),
            "y_train": np.arange(4),
            "x_test": np.zeros((2, 1, 2, 2), np.uint8),
            "y_test": np.arange(2),
            "mean": np.zeros(1, np.float32),
            "std": np.ones(1, np.float32),
            "num_classes": np.asarray(classes),
        },
        {},
    )


def test_inputs_are_read_from_the_store(kit: Kit) -> None:
    key = "a" * 64
    fake_data(kit, key, classes=7)
    _, template = digits_and_feedback(1)
    task = Task("feedback", 1, template.params, {"dataset": key}, "b" * 64, "g")
    end = kit.end_of(kit.submit([task], [key]))
    assert isinstance(end, Finished), end
    assert kit.store.load(task.key)["B.1"].shape == (5, 7)  # only the input holds the number of classes


def test_an_artifact_of_a_call_reaches_the_next_without_the_store(kit: Kit) -> None:
    data, feedback = digits_and_feedback(2)
    assert isinstance(kit.end_of(kit.submit([data])), Finished)
    shutil.rmtree(kit.store.path(data.key))
    end = kit.end_of(kit.submit([feedback], [data.key]))
    assert isinstance(end, Finished), end
    assert kit.store.load(feedback.key)["B.0"].shape == (5, 10)


def test_a_missing_input_fails_its_call_alone(kit: Kit) -> None:
    other = kit.submit(cells(1))
    _, feedback = digits_and_feedback(3)
    end = kit.end_of(kit.submit([feedback], ["c" * 64]))
    assert isinstance(end, Failed)
    assert "there is no artifact cccccccccccc" in end.error
    assert not end.transient
    assert list(end.missing) == ["c" * 64]
    assert isinstance(kit.end_of(other), Finished)


def test_a_corrupt_input_fails_its_call_and_is_set_aside(kit: Kit) -> None:
    key = "d" * 64
    fake_data(kit, key, classes=7)
    (kit.store.path(key) / TENSORS).write_bytes(b"what a bad disk gives back")
    _, feedback = digits_and_feedback(4)
    end = kit.end_of(kit.submit([feedback], [key]))
    assert isinstance(end, Failed)
    assert "SHA-256 differs" in end.error
    assert not end.transient
    assert list(end.missing) == [key]
    assert not kit.store.has(key)


def test_every_missing_or_damaged_input_is_named(kit: Kit) -> None:
    whole, gone, damaged = "1" * 64, "2" * 64, "3" * 64
    fake_data(kit, whole, classes=7)
    fake_data(kit, damaged, classes=7)
    (kit.store.path(damaged) / TENSORS).unlink()
    _, feedback = digits_and_feedback(6)
    end = kit.end_of(kit.submit([feedback], [gone, whole, damaged]))
    assert isinstance(end, Failed)
    assert list(end.missing) == [gone, damaged]
    assert "there is no artifact 222222222222" in end.error
    assert "is gone, but its record is there" in end.error


def test_a_damaged_artifact_is_replaced_by_the_call_that_makes_it(kit: Kit) -> None:
    (task,) = tasks = [noop.BASE.task({"base": "ok", "run": f"damaged {kit.name}"})]
    assert isinstance(kit.end_of(kit.submit(tasks)), Finished)
    (kit.store.path(task.key) / RECORD).write_text("what a bad disk gives back")
    end = kit.end_of(kit.submit(tasks))
    assert isinstance(end, Finished), end
    assert end.sizes == {task.key: len(kit.store.read(task.key))}


def test_an_input_that_cannot_be_read_may_be_retried(kit: Kit) -> None:
    key = "e" * 64
    kit.store.path(key).parent.mkdir(parents=True)
    kit.store.path(key).write_text("a file where a folder should be")
    _, feedback = digits_and_feedback(5)
    end = kit.end_of(kit.submit([feedback], [key]))
    assert isinstance(end, Failed)
    assert "cannot be read" in end.error
    assert end.transient
    assert list(end.missing) == []


# -- failures ------------------------------------------------------------------------------------------------------


def test_an_exception_fails_its_call_with_its_traceback_and_no_other(kit: Kit) -> None:
    good, bad = kit.submit(cells(1)), kit.submit([*cells(1), *cells(7, behaviour="raise")])
    end = kit.end_of(bad)
    assert isinstance(end, Failed)
    assert end.error == "ValueError: asked to raise at x = 7"
    assert 'raise ValueError(f"asked to raise at x = {x}")' in end.traceback
    assert not end.transient
    assert end.host
    assert isinstance(kit.end_of(good), Finished)


def test_failed_io_may_be_retried(kit: Kit) -> None:
    end = kit.end_of(kit.submit(cells(1, behaviour="io")))
    assert isinstance(end, Failed)
    assert end.error == "OSError: asked to fail as a disk would"
    assert end.transient


def test_artifacts_stored_before_a_failure_are_named(kit: Kit) -> None:
    tasks = [noop.BASE.task({"base": base, "run": f"partly {kit.name}"}) for base in ("ok", "raise")]
    end = kit.end_of(kit.submit(tasks))
    assert isinstance(end, Failed)
    assert list(end.stored) == [tasks[0].key]
    assert kit.store.has(tasks[0].key)


def test_an_unknown_kind_fails(kit: Kit) -> None:
    task = cells(1)[0]
    end = kit.end_of(kit.submit([Task("unknown", 1, {}, {}, task.key, task.group)]))
    assert isinstance(end, Failed)
    assert "knows no task kind 'unknown'" in end.error


def test_a_call_that_asks_for_more_than_there_is_gets_what_there_is(kit: Kit) -> None:
    call = kit.submit(cells(5), resources=Resources(cpu=64, gpu=8))
    assert rows_of(kit.end_of(call))[0]["twice"] == 10.0


@ray_alone  # the local runner's threads share what the process has
def test_impossible_resources_fail_their_call_alone(kit: Kit) -> None:
    end = kit.end_of(kit.submit(cells(5), resources=Resources(cpu=1e-6)))
    assert isinstance(end, Failed)
    assert "0.0001" in end.error
    assert not end.transient
    assert rows_of(kit.end_of(kit.submit(cells(6))))[0]["twice"] == 12.0


# -- cancel --------------------------------------------------------------------------------------------------------


def test_a_running_call_is_cancelled(kit: Kit) -> None:
    call = kit.submit(cells(1, behaviour="sleep"))
    kit.running(call)
    started_at = time.monotonic()
    kit.runner.cancel(call)
    end = kit.end_of(call)
    assert isinstance(end, Failed)
    assert (end.error, end.transient) == ("cancelled", False)
    assert time.monotonic() - started_at < 20
    assert rows_of(kit.end_of(kit.submit(cells(4))))[0]["twice"] == 8.0


def test_a_queued_call_is_cancelled_before_it_starts(kit: Kit) -> None:
    sleepers = [kit.submit(cells(x, behaviour="sleep")) for x in range(WORKERS)]
    kit.running(*sleepers)
    queued = kit.submit(cells(9))
    for call in (queued, *sleepers):
        kit.runner.cancel(call)
    end = kit.end_of(queued)
    assert isinstance(end, Failed)
    assert (end.error, end.transient) == ("cancelled", False)
    assert kit.of(queued, Started) == []
    for call in sleepers:
        kit.end_of(call)


def test_cancelling_an_unknown_call_does_nothing(kit: Kit) -> None:
    call = kit.submit(cells(1))
    assert isinstance(kit.end_of(call), Finished)
    kit.runner.cancel(call)
    kit.runner.cancel(10**9)
    assert isinstance(kit.end_of(kit.submit(cells(2))), Finished)
    assert kit.runner.poll(0.3) == []


# -- what costs workers, and the time to start new ones -----------------------------------------------------------


@ray_alone  # calls of the local runner run in this very process: os._exit would end the tests
def test_a_worker_that_dies_is_replaced(kit: Kit) -> None:
    end = kit.end_of(kit.submit(cells(1, behaviour="crash")))
    assert isinstance(end, Failed)
    assert (end.transient, end.crashed) == (True, True)
    assert "its worker process" in end.error
    assert rows_of(kit.end_of(kit.submit(cells(4))))[0]["twice"] == 8.0


def test_a_task_that_exits_ends_its_call_alone(local_kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    def exits(tasks: Sequence[Task], inputs: Inputs, device: Any) -> Iterator[Output]:
        sys.exit(4)
        yield Output(tasks[0].key)

    monkeypatch.setitem(registry().kinds, "exits", TaskKind("exits", 1, exits))
    end = local_kit.end_of(local_kit.submit([Task("exits", 1, {}, {}, "9" * 64, "g")]))
    assert isinstance(end, Failed)
    assert end.error == "SystemExit: the task asked its process to end with status 4"
    assert "sys.exit(4)" in end.traceback
    assert (end.transient, end.crashed) == (True, True)
    assert rows_of(local_kit.end_of(local_kit.submit(cells(4))))[0]["twice"] == 8.0


# -- the Ray runner's supervision, which an in-process runner does not need ----------------------------------------


@pytest.mark.slow
def test_when_the_driver_dies_everything_is_lost_and_a_new_one_is_started(ray_kit: Kit) -> None:
    ray_kit.ready()
    ray_kit.seen.clear()
    call = ray_kit.submit(cells(1, behaviour="sleep"))
    ray_kit.running(call)
    (driver,) = drivers()
    driver.kill()
    seen = ray_kit.until(lambda seen: any(isinstance(item, Lost) for item in seen))
    assert ray_kit.of(call, Finished) + ray_kit.of(call, Failed) == []
    (lost,) = (item for item in seen if isinstance(item, Lost))
    assert "the Ray driver ended" in lost.reason
    assert ray_kit.runner.capacity().degraded is not None
    early, cancelled = ray_kit.submit(cells(3)), ray_kit.submit(cells(4))  # while there is no driver
    ray_kit.runner.cancel(cancelled)
    end = ray_kit.end_of(cancelled)
    assert isinstance(end, Failed)
    assert end.error == "cancelled"
    ray_kit.ready()
    assert rows_of(ray_kit.end_of(early))[0]["twice"] == 6.0
    assert ray_kit.runner.capacity().degraded is None
    assert len(drivers()) == 1


def test_a_driver_that_cannot_start_is_reported_and_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("creditgrid.workers.ray.runner.FIRST_PAUSE_S", 0.1)
    monkeypatch.setattr("sys.executable", "/bin/false")
    kit = Kit("ray", RayRunner(ArtifactStore(tmp_path), tmp_path / "ray.log"), ArtifactStore(tmp_path))
    kit.runner.start()
    try:
        call = kit.submit(cells(1))
        kit.until(lambda seen: sum(isinstance(item, Lost) for item in seen) >= 2)
        assert "the Ray driver ended with status 1; its log is" in (kit.runner.capacity().degraded or "")
        assert kit.of(call, Finished) + kit.of(call, Failed) == []
        monkeypatch.setattr("sys.executable", "/nowhere/python")
        kit.until(lambda seen: any("cannot be started" in item.reason for item in seen if isinstance(item, Lost)))
    finally:
        kit.runner.stop()


# -- the end -------------------------------------------------------------------------------------------------------


def test_stop_ends_what_is_in_flight(kit: Kit) -> None:
    """The last test: the runner is stopped after it."""
    running = kit.submit(cells(1, behaviour="sleep"))
    kit.running(running)
    for x in range(WORKERS):
        kit.submit(cells(x, behaviour="sleep", group=1))
    started_at = time.monotonic()
    kit.runner.stop()
    assert time.monotonic() - started_at < 40
    if kit.name == "ray":
        assert drivers() == []
