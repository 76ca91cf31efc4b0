"""Keys name what is computed (kind, version, parameters, parents), never where, and never with which other tasks."""

from __future__ import annotations

import hashlib
import json
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from creditgrid.core.errors import TaskError
from creditgrid.core.fingerprint import digest
from creditgrid.core.task import Resources, TaskKind


def run(tasks: Any, inputs: Any, device: Any) -> Any:
    raise AssertionError("no task is run here")


KIND = TaskKind("toy", 1, run)
PARAMS = st.dictionaries(
    st.text(max_size=5), st.none() | st.booleans() | st.integers() | st.text(max_size=5), max_size=4
)


def test_the_key_is_the_digest_of_the_payload() -> None:
    parent = KIND.task({"a": 1})
    task = KIND.task({"b": 2.5, "c": None}, {"role": parent})
    payload = {"kind": "toy", "version": 1, "params": {"b": 2.5, "c": None}, "parents": {"role": parent.key}}
    assert task.payload() == payload
    text = json.dumps(payload, sort_keys=True, separators=(",", ":"))
    assert task.key == digest(payload) == hashlib.sha256(text.encode()).hexdigest()


@given(PARAMS, PARAMS)
def test_keys_are_equal_exactly_when_parameters_are(left: dict[str, Any], right: dict[str, Any]) -> None:
    same = json.dumps(left, sort_keys=True) == json.dumps(right, sort_keys=True)
    assert (KIND.task(left).key == KIND.task(right).key) == same
    backwards = dict(reversed(left.items()))
    assert KIND.task(backwards).key == KIND.task(left).key


def test_everything_in_the_identity_changes_the_key() -> None:
    parent, other = KIND.task({"p": 1}), KIND.task({"p": 2})
    tasks = [
        KIND.task({"a": 1}),
        KIND.task({"a": 2}),
        KIND.task({"b": 1}),
        TaskKind("toy", 2, run).task({"a": 1}),
        TaskKind("other", 1, run).task({"a": 1}),
        KIND.task({"a": 1}, {"x": parent}),
        KIND.task({"a": 1}, {"x": other}),
        KIND.task({"a": 1}, {"y": parent}),
        KIND.task({"a": 1}, {"x": parent, "y": other}),
        KIND.task({"a": 1}, {"x": other, "y": parent}),
    ]
    assert len({task.key for task in tasks}) == len(tasks)


def test_a_task_has_the_versions_of_its_parents() -> None:
    parents = {"a": KIND.task({}), "b": TaskKind("toy", 5, run).task({})}
    assert KIND.task({}, parents).parent_versions == {"a": 1, "b": 5}
    assert KIND.task({}).parent_versions == {}


def test_nothing_outside_the_identity_changes_the_key() -> None:
    plain = KIND.task({"a": 1})
    for task in (
        KIND.task({"a": 1}, source={"path": "/somewhere"}),
        KIND.task({"a": 1}, group=("together",)),
        TaskKind("toy", 1, run, Resources(cpu=4, gpu=1), max_group=7).task({"a": 1}),
    ):
        assert task.key == plain.key
        assert task == plain
        assert hash(task) == hash(plain)


def test_a_version_may_hold_for_one_value_of_a_parameter_alone() -> None:
    raised = TaskKind("toy", 1, run, version_by=lambda params: 3 if params.get("method") == "b" else 1)
    assert {raised.task(params).version for params in ({"method": "a"}, {"method": None}, {})} == {1}
    same = {"method": "a", "x": 1}
    assert raised.task(same).key == KIND.task(same).key
    new = raised.task({"method": "b"}, group=("g",))
    assert (new.version, new.payload()["version"]) == (3, 3)
    assert new.key == digest(new.payload()) != KIND.task({"method": "b"}).key
    assert new.group == TaskKind("toy", 3, run).task({}, group=("g",)).group, "tasks of two versions share no call"


def test_a_task_of_another_version_is_refused_with_what_to_do() -> None:
    raised = TaskKind("toy", 1, run, version_by=lambda params: 2 if params["method"] == "b" else 1)
    raised.check_version(KIND.task({"method": "a"}))
    raised.check_version(raised.task({"method": "b"}))
    old = KIND.task({"method": "b"})
    with pytest.raises(TaskError, match=f"toy {old.key[:12]} is a task of version 1, .* computes version 2, .* submit"):
        raised.check_version(old)
    with pytest.raises(
        TaskError, match=r"is a task of version 2, .* computes version 1, .*: install what the service has"
    ):
        KIND.check_version(raised.task({"method": "b"}))


def test_tasks_share_a_call_when_their_groups_are_equal() -> None:
    one, two = KIND.task({"a": 1}, group=("g", 1)), KIND.task({"a": 2}, group=("g", 1))
    assert one.group == two.group
    assert KIND.task({"a": 1}, group=("g", 2)).group != one.group
    assert TaskKind("other", 1, run).task({"a": 1}, group=("g", 1)).group != one.group
    assert TaskKind("toy", 2, run).task({"a": 1}, group=("g", 1)).group != one.group


def test_without_a_group_a_task_is_alone() -> None:
    assert KIND.task({"a": 1}).group != KIND.task({"a": 2}).group


def test_a_task_can_be_pickled() -> None:
    task = KIND.task({"a": 1}, {"x": KIND.task({})}, group=("g",), source={"path": "/p"})
    back = pickle.loads(pickle.dumps(task))
    assert back == task
    assert back.payload() == task.payload()
    assert (back.group, back.source) == (task.group, task.source)


def test_a_parameter_without_an_exact_text_is_refused() -> None:
    with pytest.raises(ValueError, match="identity"):
        KIND.task({"a": float("nan")})
