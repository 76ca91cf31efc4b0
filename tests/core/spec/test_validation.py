"""Faults of specs: their pointers and messages."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_spec import JSON, cell, cells, faults, grid, places, replaced, resolves

from creditgrid.core.errors import Fault, SpecError
from creditgrid.core.spec.faults import MAX_FAULTS
from creditgrid.core.spec.model import MAX_CELLS, MAX_RULES


@pytest.mark.parametrize(
    ("document", "where", "complaint"),
    [
        ({"axes": {"z": [1]}, "fixed": {"a": 1}}, "/axes/z", "toy has no parameter 'z'; it has a, b, c, d, e, f"),
        ({"fixed": {"a": 1, "bb": 1}}, "/fixed/bb", "(did you mean 'b'?)"),
        ({"fixed": {}}, "/fixed", "toy needs a: give it in fixed or as an axis"),
        ({}, "", "toy needs a"),
        ({"fixed": {"a": 1}, "axes": {"a": [1]}}, "/axes/a", "both fixed and an axis"),
        ({"axes": {"a": []}}, "/axes/a", "empty"),
        ({"axes": {"a": 3}}, "/axes/a", "a list of values or a generator"),
        ({"axes": {"a": [1, 2, 1]}}, "/axes/a/2", "1 occurs twice on the axis (also at 0)"),
        ({"axes": {"a": [1, "2"]}}, "/axes/a/1", "valid integer; got '2'"),
        ({"axes": {"a": [1, True]}}, "/axes/a/1", "valid integer; got True"),
        ({"axes": {"a": [1, 2.0]}}, "/axes/a/1", "valid integer; got 2.0"),
        ({"axes": {"a": [1, None]}}, "/axes/a/1", "valid integer; got None"),
        ({"fixed": {"a": -101}}, "/fixed/a", "greater than or equal to -100"),
        ({"fixed": {"a": 2**63}}, "/fixed/a", "at most 64 bits"),
        ({"fixed": {"a": 1, "f": -(2**63) - 1}}, "/fixed/f", "at most 64 bits"),
        ({"fixed": {"a": 1, "b": "1"}}, "/fixed/b", "valid number"),
        ({"fixed": {"a": 1, "b": True}}, "/fixed/b", "valid number"),
        ({"fixed": {"a": 1, "c": "x"}}, "/fixed/c", "'u', 'v' or 'w'; got 'x'"),
        ({"fixed": {"a": 1, "d": 1}}, "/fixed/d", "valid boolean"),
        ({"fixed": {"a": [1]}}, "/fixed/a", "valid integer"),
        ({"fixed": {"a": 1}, "axes": {"b": {"linspace": [-20, 0, 5]}}}, "/axes/b", "greater than or equal to -10"),
        ({"axes": {"a": {"linspace": [0, 1, 2]}}}, "/axes/a", "valid integer; got 0.0"),
        ({"axes": {"a": [1, 2], "b": [1.0]}, "zip": [["a", "b"]]}, "/zip/0", "one length; a has 2, b has 1"),
        ({"axes": {"a": [1]}, "zip": [["a", "c"]]}, "/zip/0", "'c' is not an axis of this spec"),
        ({"axes": {"a": [1]}, "zip": [["a"]]}, "/zip/0", "at least two axes"),
        (
            {"axes": {"a": [1], "b": [1.0], "c": ["u"]}, "zip": [["a", "b"], ["b", "c"]]},
            "/zip/1",
            "more than one group",
        ),
        ({"axes": {"a": [1]}, "zip": [["a", "a"]]}, "/zip/0", "more than one group"),
        ({"axes": {"a": [1]}, "exclude": [{}]}, "/exclude/0", "leave out every cell"),
        ({"axes": {"a": [1]}, "exclude": [{"q": 1}]}, "/exclude/0/q", "no parameter"),
        ({"axes": {"a": [1]}, "exclude": [{"a": 1}]}, "/exclude", "leaves no cells"),
        ({"fixed": {"a": 1}, "exclude": [{"f": n} for n in range(MAX_RULES + 1)]}, "/exclude", "at most 1000"),
        ({"axes": {"a": [1]}, "include": [{"a": "x"}]}, "/include/0/a", "valid integer"),
        ({"axes": {"a": [1]}, "include": [{"a": 2}, {"b": 1.0}]}, "/include/1", "needs a: give it here or in fixed"),
        ({"include": [{"a": 2}, {"b": 1.0}]}, "/include/1", "needs a: give it here or in fixed"),
        ({"axes": {"b": [1.0]}, "include": [{"a": 2}]}, "", "needs a: give it in fixed or as an axis"),
        (
            {"fixed": {"a": 1}, "resources": {"toys": {"cpu": 1}}},
            "/resources/toys",
            "(did you mean 'toy'?); toy runs base, toy",
        ),
        ({"fixed": {"a": 1}, "resources": {"toy": {"ram": 1}}}, "/resources/toy/ram", "unknown key 'ram'"),
        ({"fixed": {"a": 1}, "resources": {"toy": {"cpu": 0}}}, "/resources/toy/cpu", "0.0001"),
        ({"fixed": {"a": 1}, "resources": {"toy": {"gpu": 1.5}}}, "/resources/toy/gpu", "or whole GPUs; got 1.5"),
        ({"fixed": {"a": 1}, "resources": {"toy": {"gpu": 1e-6}}}, "/resources/toy/gpu", "a share of 0.0001 to 1"),
        ({"fixed": {"a": 1}, "resources": {"toy": {"gpu": -1}}}, "/resources/toy/gpu", "greater than or equal to 0"),
        ({"fixed": {"a": 1}, "retry": {"max": -1}}, "/retry/max", "greater than or equal to 0"),
        ({"fixed": {"a": 1}, "retry": {"max": 1.0}}, "/retry/max", "valid integer"),
        ({"fixed": {"a": 1}, "max_failed": -1}, "/max_failed", "greater than or equal to 0"),
        ({"fixed": {"a": 1}, "priority": 1001}, "/priority", "less than or equal to 1000"),
        ({"fixed": {"a": 1}, "fail_fast": "yes"}, "/fail_fast", "valid boolean"),
        ({"fixed": {"a": 1}, "experiments": "x"}, "/experiments", "(did you mean 'experiment'?)"),
        ({"fixed": {"a": 1}, "name": ""}, "/name", "at least 1 character"),
        ({"fixed": {"a": 1}, "name": 7}, "/name", "valid string; got 7"),
        ({"fixed": [1]}, "/fixed", "valid dictionary; got [1]"),
        ({"axes": {"a": [1]}, "zip": ["a", "b"]}, "/zip/0", "valid list"),
        ({"axes": {"a": [1], "d": [True], "c": ["u", "w"]}}, "/axes/d/0", "d does not go with w"),
        ({"axes": {"a": [1], "c": ["u", "w"]}, "fixed": {"d": True}}, "/fixed/d", "d does not go with w"),
        ({"axes": {"a": [1]}, "include": [{"a": 1, "c": "w", "d": True}]}, "/include/0/d", "d does not go with w"),
        (
            {"axes": {"a": [1]}, "fixed": {"d": True}, "include": [{"a": 1, "c": "w"}]},
            "/fixed/d",
            "d does not go with w",
        ),
    ],
)
def test_each_fault_has_its_pointer_and_message(document: dict[str, Any], where: str, complaint: str) -> None:
    found = faults(document)
    assert where in found, found
    assert complaint in found[where]
    assert resolves(where, {"name": "n", "experiment": "toy", **document})


def test_a_billion_cells_are_refused_before_one_is_made() -> None:
    axes = {name: {"range": [1000]} for name in ("a", "e", "f")}
    found = faults({"axes": axes})
    assert found == {"/axes": f"the axes have 1,000,000,000 combinations; a sweep has at most {MAX_CELLS:,}: split it"}


def test_zipped_axes_count_once_towards_the_limit() -> None:
    axes = {name: {"range": [1000]} for name in ("a", "e", "f")}
    assert grid({"axes": axes, "zip": [["a", "e"]]}).factors == [["a", "e"], ["f"]]


def test_faults_are_bounded_and_the_rest_counted() -> None:
    found = faults({"axes": {"a": ["x"] * 10_000}})
    assert len(found) == MAX_FAULTS + 1
    assert found[""] == "and 1 more"  # the rest of an axis with many faults is not checked
    conflicts = {"axes": {"a": [1], "d": [True], "c": ["w"]}, "include": [{"a": n, "d": True} for n in range(40)]}
    assert len(faults(conflicts)) <= MAX_FAULTS + 1


def test_all_faults_come_at_once() -> None:
    document = {"axes": {"a": ["x"], "q": [1], "b": {"linspace": [0]}}, "fixed": {"c": "x"}, "exclude": [{"f": 0.5}]}
    assert set(faults(document)) == {"/axes/a/0", "/axes/q", "/axes/b", "/fixed/c", "/exclude/0/f"}


# -- properties of refusal -----------------------------------------------------------------------------------------


FULL: dict[str, Any] = {
    "name": "n",
    "experiment": "toy",
    "fixed": {"d": True, "e": 3},
    "axes": {"a": [1, 2], "b": {"linspace": [0.5, 1.5, 3]}, "c": ["u", "v"], "f": {"range": [0, 2, 1]}},
    "zip": [["a", "c"]],
    "exclude": [{"a": 1, "b": 0.5}],
    "include": [{"a": 7, "b": 0.25}],
    "resources": {"toy": {"cpu": 1, "gpu": 0.5}},
    "retry": {"max": 1, "backoff_s": 0.5},
    "max_failed": 3,
    "priority": 1,
}
NUMBERS = [path for path in places(FULL) if path and path[0] not in ("name", "experiment")]


def test_the_full_document_is_valid() -> None:
    assert len(cells(FULL)) == 2 * 3 * 2 - 2 + 1


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("path", NUMBERS, ids=lambda path: "/".join(map(str, path)))
def test_no_number_that_is_not_finite_is_accepted_anywhere(path: tuple[Any, ...], bad: float) -> None:
    document = replaced(FULL, path, bad)
    with pytest.raises(SpecError) as caught:
        list(grid(document).cells())
    assert all(resolves(fault.pointer, document) for fault in caught.value.faults)


@given(st.sampled_from([path for path in places(FULL) if path]), JSON)
def test_any_other_value_anywhere_is_accepted_or_refused_with_its_pointer(path: tuple[Any, ...], value: Any) -> None:
    document = replaced(FULL, path, value)
    made: list[str] = []
    refused: list[Fault] = []
    try:
        made = [cell(params, None)[0].key for params in grid(document).cells()]  # type: ignore[arg-type]
    except SpecError as error:
        refused = list(error.faults)
    assert bool(made) != bool(refused)
    assert len(set(made)) == len(made)
    for fault in refused:
        assert fault.detail
        assert resolves(fault.pointer, document), fault
