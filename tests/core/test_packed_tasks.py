"""Tasks as text, and packed."""

from __future__ import annotations

import json
import pickle

import pytest

from creditgrid.core.packed_tasks import PackedTasks, params_text, parents_in, shared_text, task_of
from creditgrid.core.task import Task, TaskKind

KIND = TaskKind("measure", 3, None)
BASE = TaskKind("base", 1, None).task({"seed": 0})
TASKS = [
    KIND.task(
        {"eta": 1e-5 * 3**n, "note": "ä\N{SNOWMAN}\0", "flag": None}, {"base": BASE}, group=(1,), source={"d": "x"}
    )
    for n in range(4)
] + [KIND.task({"eta": 0.5})]


def texts(tasks: list[Task]) -> list[tuple[str, str, str]]:
    return [(task.key, params_text(task), shared_text(task)) for task in tasks]


def fields(task: Task) -> dict[str, object]:
    return {name: getattr(task, name) for name in Task.__slots__ if name != "params_text"}  # that is a cache


def test_a_task_comes_back_from_its_texts() -> None:
    for task, (key, params, shared) in zip(TASKS, texts(TASKS), strict=True):
        assert fields(task_of("measure", key, params, shared)) == fields(task)
        assert parents_in(shared) == task.parents


def test_packed_tasks_are_the_tasks_also_on_the_other_side_of_a_pipe() -> None:
    packed = PackedTasks.pack("measure", texts(TASKS))
    for found in (packed, pickle.loads(pickle.dumps(packed))):
        assert len(found) == 5
        assert [fields(task) for task in found] == [fields(task) for task in TASKS]
        assert (found[-1], found[1:3]) == (TASKS[-1], TASKS[1:3])
        assert found.parents() == {BASE.key}


def test_a_text_from_before_versions_of_parents_were_recorded_is_read() -> None:
    key, params, shared = texts(TASKS)[0]
    known = json.loads(shared)
    assert known.pop("parent_versions") == {"base": 1}
    old = json.dumps(known)
    for found in (task_of("measure", key, params, old), *PackedTasks.pack("measure", [(key, params, old)])):
        assert found.parent_versions is None
        assert (found.version, found.parents, found.params) == (3, TASKS[0].parents, TASKS[0].params)
        assert shared_text(found) == old


def test_what_tasks_share_is_kept_once() -> None:
    packed = PackedTasks.pack("measure", texts(TASKS))
    assert packed.shared == (shared_text(TASKS[0]), shared_text(TASKS[-1]))
    first, second, *_ = packed
    assert first.parents is second.parents


@pytest.mark.parametrize("tasks", [[], TASKS[:1]])
def test_as_few_as_there_are(tasks: list[Task]) -> None:
    packed = PackedTasks.pack("measure", texts(tasks))
    assert list(packed) == tasks
    assert bool(packed) is bool(tasks)
