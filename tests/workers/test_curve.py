"""The curve of a call: what becomes a point, what is left out with a warning, and what outlives the process."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
import torch

from creditgrid.core.experiments.registry import Registry
from creditgrid.core.task import Inputs, Output, Progress, Resources, Saved, Task, TaskKind
from creditgrid.workers import curve as module
from creditgrid.workers import execute as execution
from creditgrid.workers.artifacts import ArtifactStore
from creditgrid.workers.curve import AT_ONCE, FULL, NAMES, CallCurve
from creditgrid.workers.execute import execute
from creditgrid.workers.runner import Call, Failed, Finished, Point


def curve() -> CallCurve:
    return CallCurve(Call(1, "toy", [], [], Resources(), attempt=3), "host", "cpu")


def points(of: CallCurve) -> list[Point]:
    found: list[Point] = []
    while more := of.unsent():
        found += more
    return found


def step(done: Any, **metrics: Any) -> Progress:
    return Progress(done, 100, "", metrics)


# -- points --------------------------------------------------------------------------------------------------------


def test_a_progress_with_metrics_is_a_point() -> None:
    made = curve()
    made.take(Progress(0, 3, "epoch 0"))
    made.take(step(1, loss=0.5, accuracy=1))
    made.take(step(np.int64(2), loss=np.float32(0.25)))
    first, second = points(made)
    assert (first.epoch, first.metrics) == (1, {"loss": 0.5, "accuracy": 1.0})
    assert (first.attempt, first.host, first.device) == (3, "host", "cpu")
    assert (second.epoch, second.metrics) == (2, {"loss": 0.25})
    assert type(second.epoch) is int
    assert points(made) == []


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (np.float64(0.5), 0.5),
        (np.int8(3), 3.0),
        (np.array(0.5), 0.5),
        (torch.tensor(0.5), 0.5),
        (torch.tensor(2), 2.0),
        (torch.tensor(0.5, requires_grad=True), 0.5),
        (math.nan, None),
        (-math.inf, None),
        (np.float32("inf"), None),
        (10**400, None),
    ],
)
def test_numbers_of_all_kinds_count(value: Any, kept: float | None, caplog: pytest.LogCaptureFixture) -> None:
    made = curve()
    made.take(step(1, loss=value))
    assert points(made)[0].metrics == {"loss": kept}
    assert caplog.messages == []


class Hostile(float):
    def __float__(self) -> float:
        raise RuntimeError("not today")


@pytest.mark.parametrize(
    ("value", "type_name"),
    [
        (True, "bool"),
        (np.bool_(True), "bool"),
        (torch.tensor(True), "Tensor"),
        ("0.5", "str"),
        (None, "NoneType"),
        ([0.5], "list"),
        (np.ones(1), "ndarray"),
        (torch.ones(2), "Tensor"),
        (torch.ones((), device="meta"), "Tensor"),
        (1j, "complex"),
        (Decimal(1), "Decimal"),
        (Hostile(1), "Hostile"),
    ],
)
def test_what_is_no_number_is_left_out_and_named_once(
    value: Any, type_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    made = curve()
    for epoch in (1, 2, 3):
        made.take(step(epoch, loss=0.5, odd=value))
    assert [point.metrics for point in points(made)] == [{"loss": 0.5}] * 3
    (message,) = caplog.messages
    assert message.startswith("curve of toy: the metric odd is a ")
    assert type_name in message


@pytest.mark.parametrize(
    ("metrics", "why"),
    [
        ({"a b": 1.0}, "'a b' is left out: a name is an ASCII identifier"),
        ({"é": 1.0}, "ASCII identifier"),
        ({"x" * 65: 1.0}, "at most 64 characters"),
        ({3: 1.0}, "'int' is left out"),
        ([1.0], "metrics are a list"),
        (None, "metrics are a NoneType"),
        ({"loss": 1.0, "Loss": 2.0}, "differs from loss in case alone"),
    ],
)
def test_names_that_cannot_be_columns(metrics: Any, why: str, caplog: pytest.LogCaptureFixture) -> None:
    made = curve()
    for epoch in (1, 2):
        made.take(Progress(epoch, 9, "", metrics))
    assert all(point.metrics == {"loss": 1.0} for point in points(made))
    (message,) = caplog.messages
    assert why in message


@pytest.mark.parametrize("done", [1, 0, 2, 1.5, "3", None, 2**63])
def test_done_must_be_whole_and_increase(done: Any, caplog: pytest.LogCaptureFixture) -> None:
    made = curve()
    made.take(step(2, loss=1.0))
    made.take(step(done, loss=2.0))
    made.take(step(done, loss=3.0))
    made.take(step(3, loss=4.0))
    assert [point.metrics["loss"] for point in points(made)] == [1.0, 4.0]
    assert len(caplog.messages) == 1


@pytest.mark.parametrize(
    ("done", "total", "shown"),
    [
        (3, 10, (3, 10)),
        (np.int64(3), torch.tensor(10), (3, 10)),
        (3.0, np.float32(10), (3, 10)),
        ("3", 10, (0, 0)),
        (3, None, (0, 0)),
        (math.nan, 10, (0, 0)),
        (3, math.inf, (0, 0)),
        (3, 2**64, (0, 0)),
        (Hostile(3), 10, (0, 0)),
        ([3], 10, (0, 0)),
    ],
)
def test_progress_is_in_whole_numbers(done: Any, total: Any, shown: Any, caplog: pytest.LogCaptureFixture) -> None:
    made = curve()
    made.take(Progress(done, total, "a note"))
    for _ in range(2):
        advanced = made.advanced()
        assert (advanced.done, advanced.total, advanced.note) == (*shown, "a note")
        assert type(advanced.done) is type(advanced.total) is int
    assert len(caplog.messages) == (shown == (0, 0))


@pytest.mark.parametrize(("note", "shown"), [("x" * 10**6, "x" * 500), ("\ud800!", "?!"), (7, ""), (None, "")])
def test_a_note_is_bounded_text(note: Any, shown: str) -> None:
    made = curve()
    made.take(Progress(1, 2, note))
    assert made.advanced().note == shown


def test_a_type_may_change(caplog: pytest.LogCaptureFixture) -> None:
    made = curve()
    for epoch, value in enumerate([1, 2.5, "3", True, np.float16(4), None, 5], 1):
        made.take(step(epoch, loss=value))
    assert [(point.epoch, point.metrics["loss"]) for point in points(made)] == [(1, 1.0), (2, 2.5), (5, 4.0), (7, 5.0)]
    assert len(caplog.messages) == 3


# -- bounds --------------------------------------------------------------------------------------------------------


def test_metrics_of_a_curve_are_bounded(caplog: pytest.LogCaptureFixture) -> None:
    made = curve()
    for epoch in range(1, 300):
        made.take(Progress(epoch, 300, "", {f"m{epoch}_{i}": 1.0 for i in range(3)}))
    assert len({name for point in points(made) for name in point.metrics}) == NAMES
    (message,) = caplog.messages
    assert "at most 50 metrics" in message
    made.take(Progress(1000, 1000, "", dict.fromkeys(map(str, range(10**5)), 1.0)))
    assert len(caplog.messages) <= module.WARNINGS + 1


def test_later_points_of_a_long_curve_are_thinned(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    monkeypatch.setattr(module, "FULL", 10)
    made = curve()
    for epoch in range(1, 2001):
        made.take(step(epoch, loss=1.0))
    epochs = [point.epoch for point in points(made)]
    assert epochs == [*range(1, 11), *range(20, 101, 10), *range(200, 1001, 100), 2000]
    (message,) = caplog.messages
    assert "more than 10 points" in message


def test_a_million_points_take_no_memory_and_little_time() -> None:
    made = curve()
    progress = step(0, loss=1.0)
    for epoch in range(100_000):
        object.__setattr__(progress, "done", epoch)
        made.take(progress)
    state = made.state()
    assert state is not None
    assert len(state["points"]) == FULL + 9000
    assert all(len(piece) <= AT_ONCE for piece in iter(made.unsent, ()))


# -- what outlives the process -------------------------------------------------------------------------------------


def test_a_state_continues_with_its_points_first(caplog: pytest.LogCaptureFixture) -> None:
    first = curve()
    for epoch in (1, 2, 4):
        first.take(step(epoch, loss=float(epoch), bad=math.nan))
    second = curve()
    second.restore(json.loads(json.dumps(first.state())))
    for epoch in (2, 3, 4, 5):  # the run starts from an earlier epoch again
        second.take(step(epoch, loss=-1.0))
    assert points(second)[:3] == points(first)
    assert [point.epoch for point in second._points] == [1, 2, 4, 5]
    assert caplog.messages == []
    second.restore(first.state())  # nothing new
    second.restore(None)
    assert len(second._points) == 4


CPU = torch.device("cpu")


class Toy:
    """A kind with two artifacts a call and five epochs, that can be interrupted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, store: ArtifactStore) -> None:
        self.store, self.stop_after, self.saves = store, 99, True
        self.error: BaseException = OSError("the machine went away")
        self.kind = TaskKind("toy", 1, self.run, max_group=10)
        self.tasks = [self.kind.task({"epoch": epoch}, group=("g",)) for epoch in (3, 5)]
        monkeypatch.setattr(execution, "registry", lambda: Registry({}, {"toy": self.kind}, {}))
        monkeypatch.setattr("creditgrid.workers.resume_state.EVERY_S", 0.0)
        monkeypatch.setattr("creditgrid.workers.resume_state.SHARE", math.inf)

    def run(self, tasks: Sequence[Task], inputs: Inputs, device: torch.device) -> Iterator[Progress | Output | Saved]:
        wanted = {task.params["epoch"]: task.key for task in tasks}
        saved = inputs.get(tasks[0].group)
        assert saved is None or saved.keys() == {"epoch"}
        for epoch in range(1 if saved is None else int(saved["epoch"]) + 1, max(wanted) + 1):
            yield Progress(epoch, 5, "", {"loss": 1 / epoch})
            if epoch in wanted:
                yield Output(wanted[epoch], arrays={"w": np.full(2, epoch)})
            if self.saves:
                yield Saved(lambda epoch=epoch: {"epoch": np.array(epoch)})  # type: ignore[misc]
            if epoch == self.stop_after:
                raise self.error

    def go(self, tasks: Sequence[Task] | None = None, attempt: int = 1) -> tuple[Finished | Failed, list[int]]:
        items = list(execute(Call(1, "toy", tasks or self.tasks, [], Resources(), attempt), {}, self.store, CPU))
        sent = [point for item in items if not isinstance(item, tuple) for point in getattr(item, "points", ())]
        assert isinstance(items[-1], Finished | Failed)
        return items[-1], [point.epoch for point in sent]


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch, store: ArtifactStore) -> Toy:
    return Toy(monkeypatch, store)


@pytest.mark.parametrize("saves", [True, False])
@pytest.mark.parametrize("stop", [1, 2, 3, 4, 5])
def test_another_attempt_sends_the_whole_curve_again(toy: Toy, stop: int, saves: bool) -> None:
    toy.stop_after, toy.saves = stop, saves
    failed, sent = toy.go()
    assert isinstance(failed, Failed)
    assert sent == list(range(1, stop + 1))
    toy.stop_after = 99
    left = [task for task in toy.tasks if task.key not in failed.stored] or toy.tasks
    for asked in (left, toy.tasks):  # as after a failure that was reported, and after one that was not
        finished, sent = toy.go(asked, attempt=2)
        assert isinstance(finished, Finished)
        assert sent == [1, 2, 3, 4, 5]


def test_a_task_that_exits_sends_the_points_of_what_it_stored(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AT_ONCE", 2)
    toy.stop_after, toy.error = 4, SystemExit(3)
    failed, sent = toy.go()
    assert isinstance(failed, Failed)
    assert failed.stored == (toy.tasks[0].key,)
    assert sent == [1, 2, 3, 4]


def test_artifacts_that_are_stored_say_the_curve_again(toy: Toy) -> None:
    toy.go()
    finished, sent = toy.go()
    assert isinstance(finished, Finished)
    assert sent == [1, 2, 3, 4, 5]
    for task, epochs in zip(toy.tasks, ([1, 2, 3], [1, 2, 3, 4, 5]), strict=True):
        found = toy.store.record(task.key)["provenance"]["curve"]["points"]
        assert [point["epoch"] for point in found] == epochs
    toy.store.remove(toy.tasks[0].key)  # an artifact that is lost leaves no gap either
    finished, sent = toy.go()
    assert sent == [1, 2, 3, 4, 5]
    toy.store.remove(toy.tasks[1].key)
    assert toy.go()[1] == [1, 2, 3, 4, 5]


def test_only_the_last_record_holds_a_long_curve(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AT_ONCE", 2)
    _, sent = toy.go()
    assert sent == [1, 2, 3, 4, 5]
    assert ["curve" in toy.store.record(task.key)["provenance"] for task in toy.tasks] == [False, True]
    assert toy.go()[1] == [1, 2, 3, 4, 5]


def test_warnings_are_in_the_log_of_the_task(toy: Toy, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        curve().take(step(1, loss="high"))
    assert caplog.records[0].name == "creditgrid.workers.curve"
