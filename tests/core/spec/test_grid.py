"""Expansion of specs against the plainest possible one, and what is refused, where, and in which words."""

from __future__ import annotations

import copy
import itertools
import json
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from creditgrid.core.datasets import DatasetRef
from creditgrid.core.errors import Fault, SpecError
from creditgrid.core.experiment import Experiment, Params, Summary
from creditgrid.core.spec.grid import MAX_CELLS, MAX_FAULTS, MAX_RULES, Grid, parse, pointer, validate
from creditgrid.core.task import Task, TaskKind

WORDS = ("u", "v", "w")


class ToyParams(Params):
    """One parameter of every type."""

    a: int = Field(ge=-100)
    b: float = Field(0.0, ge=-10)
    c: Literal["u", "v", "w"] = "u"
    d: bool = False
    e: int | None = None
    f: int = 0

    def conflicts(self, dataset: DatasetRef | None) -> Iterable[tuple[str, str]]:
        if self.d and self.c == "w":
            yield "d", "d does not go with w"


def run(tasks: Any, inputs: Any, device: Any) -> Any:
    raise AssertionError("nothing is run here")


MEASURE = TaskKind("toy", 1, run)


def cell(params: ToyParams, dataset: object) -> tuple[Task, Sequence[Task]]:
    return MEASURE.task(dict(params.__dict__)), ()


TOY = Experiment("toy", "A toy", ToyParams, {}, MEASURE, cell, lambda rows: Summary("", [], [], []))
DEFAULTS: dict[str, Any] = {"b": 0.0, "c": "u", "d": False, "e": None, "f": 0}


def grid(document: dict[str, Any]) -> Grid:
    return validate(parse({"name": "n", "experiment": "toy", **document}), TOY, ["toy", "base"])


def cells(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [dict(params.__dict__) for params in grid(document).cells()]


def faults(document: Any) -> dict[str, str]:
    with pytest.raises(SpecError) as caught:
        list(grid(document).cells())
    return {fault.pointer: fault.detail for fault in caught.value.faults}


# -- a second implementation, in the plainest way ------------------------------------------------------------------


def by_hand(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Every cell of a valid document of lists, duplicates dropped, by nested loops."""
    axes: dict[str, list[Any]] = document.get("axes", {})
    together = {name: group for group in document.get("zip", []) for name in group}
    points: list[dict[str, Any]] = [{}]
    done: set[str] = set()
    for name, values in axes.items():
        if name in done:
            continue
        group = together.get(name, [name])
        done.update(group)
        steps = [{member: axes[member][i] for member in group} for i in range(len(values))]
        points = [{**point, **step} for point in points for step in steps]
    if document.get("include") and not axes:
        points = []
    found: list[dict[str, Any]] = []
    for point in points:
        whole = {**DEFAULTS, **document.get("fixed", {}), **point}
        if not any(all(whole[n] == v for n, v in rule.items()) for rule in document.get("exclude", [])):
            found.append(whole)
    for entry in document.get("include", []):
        whole = {**DEFAULTS, **document.get("fixed", {}), **entry}
        if whole not in found:
            found.append(whole)
    return found


VALUES: dict[str, st.SearchStrategy[Any]] = {
    "a": st.integers(-5, 5),
    "b": st.sampled_from([-1.5, 0.0, 0.25, 1e-5, 3.0]),
    "c": st.sampled_from(["u", "v"]),
    "d": st.booleans(),
    "e": st.none() | st.integers(0, 3),
    "f": st.integers(-3, 3),
}


@st.composite
def documents(draw: st.DrawFn) -> dict[str, Any]:
    """Valid documents: axes, some of them zipped, fixed values, rules and included cells."""
    names = draw(st.permutations(list(VALUES)))
    number = draw(st.integers(0, 4))
    on_axes, rest = names[:number], names[number:]
    axes = {name: draw(st.lists(VALUES[name], min_size=1, max_size=3, unique=True)) for name in on_axes}
    groups = []
    if number >= 2 and draw(st.booleans()):
        group = list(on_axes[:2])
        length = min(len(axes[name]) for name in group)
        for name in group:
            axes[name] = axes[name][:length]
        groups.append(draw(st.permutations(group)))
    fixed = {name: draw(VALUES[name]) for name in rest if name == "a" or draw(st.booleans())}
    needed = {} if "a" in fixed else {"a": VALUES["a"]}
    entry = st.fixed_dictionaries(needed, optional={name: VALUES[name] for name in VALUES if name not in needed})
    document: dict[str, Any] = {
        "axes": axes,
        "fixed": fixed,
        "zip": groups,
        "include": draw(st.lists(entry, max_size=3)),
    }
    if axes:
        rule = st.fixed_dictionaries({}, optional={name: st.sampled_from(axes[name]) for name in axes}).filter(bool)
        document["exclude"] = draw(st.lists(rule, max_size=2))
    return document


@given(documents())
def test_expansion_is_the_plain_one(document: dict[str, Any]) -> None:
    wanted = by_hand(document)
    if wanted:
        assert cells(document) == wanted
    else:
        assert faults(document) == {"/exclude": "the spec leaves no cells: every one is excluded"}


@given(documents(), st.randoms(use_true_random=False))
def test_the_order_of_keys_changes_no_cell(document: dict[str, Any], rng: random.Random) -> None:
    if not by_hand(document):
        return

    def mixed(value: Any) -> Any:
        if isinstance(value, dict):
            items = [(name, mixed(item)) for name, item in value.items()]
            rng.shuffle(items)
            return dict(items)
        return [mixed(item) for item in value] if isinstance(value, list) else value

    def keys(some: dict[str, Any]) -> set[str]:
        return {cell(params, None)[0].key for params in grid(some).cells()}  # type: ignore[arg-type]

    assert keys(mixed(document)) == keys(document)


@given(st.data())
def test_the_number_of_cells_is_the_product_less_what_is_excluded(data: st.DataObject) -> None:
    axes = {
        "a": data.draw(st.lists(st.integers(-9, 9), min_size=1, max_size=6, unique=True)),
        "f": data.draw(st.lists(st.integers(-9, 9), min_size=1, max_size=6, unique=True)),
        "c": ["u", "v"],
    }
    dropped = data.draw(st.sampled_from(axes["a"]))  # type: ignore[arg-type]
    full = len(axes["a"]) * len(axes["f"]) * 2
    assert len(cells({"axes": axes})) == full
    left = full - len(axes["f"])
    rule = {"a": dropped, "c": "u"}
    assert len(cells({"axes": axes, "exclude": [rule]})) == left
    back = {"a": dropped, "c": "u", "f": axes["f"][0]}
    assert len(cells({"axes": axes, "exclude": [rule], "include": [back]})) == left + 1  # an included cell comes back


def test_the_last_axis_is_the_fastest() -> None:
    found = cells({"axes": {"a": [1, 2], "c": ["u", "v"]}})
    assert [(values["a"], values["c"]) for values in found] == [(1, "u"), (1, "v"), (2, "u"), (2, "v")]


def test_zipped_axes_advance_together() -> None:
    found = cells({"axes": {"a": [1, 2, 3], "c": ["u", "v"], "b": [0.1, 0.2, 0.3]}, "zip": [["b", "a"]]})
    wanted = [(a, c, b) for (a, b), c in itertools.product([(1, 0.1), (2, 0.2), (3, 0.3)], "uv")]
    assert [(values["a"], values["c"], values["b"]) for values in found] == wanted


def test_a_zipped_axis_may_repeat_a_value_as_long_as_the_points_differ() -> None:
    found = cells({"axes": {"a": [1, 2, 3], "b": [0.5, 0.5, 1.0]}, "zip": [["a", "b"]]})
    assert [(values["a"], values["b"]) for values in found] == [(1, 0.5), (2, 0.5), (3, 1.0)]
    repeated = {"axes": {"a": [1, 2, 1], "b": [0.5, 0.5, 0.5]}, "zip": [["a", "b"]]}
    assert "stands twice" in faults(repeated)["/axes/a/2"]


def test_a_spec_without_axes_is_one_cell_and_includes_alone_are_those_cells() -> None:
    assert cells({"fixed": {"a": 1}}) == [{"a": 1, **DEFAULTS}]
    assert [values["a"] for values in cells({"include": [{"a": 1}, {"a": 2}, {"a": 1}]})] == [1, 2]


def test_generators_and_lists_name_the_same_cells() -> None:
    typed = cells({"fixed": {"a": 1}, "axes": {"b": [1e-05, 0.0001, 0.001, 0.01]}})
    assert cells({"fixed": {"a": 1}, "axes": {"b": {"logspace": [1e-5, 1e-2, 4]}}}) == typed


def test_equal_values_are_one_cell() -> None:
    assert cells({"fixed": {"a": 1, "b": 2}}) == cells({"fixed": {"a": 1, "b": 2.0}})
    (zero,) = cells({"fixed": {"a": 1, "b": -0.0}})
    assert json.dumps(zero["b"]) == "0.0"
    assert "stands twice" in faults({"fixed": {"a": 1}, "axes": {"b": [0.0, -0.0]}})["/axes/b/1"]


# -- what is refused -----------------------------------------------------------------------------------------------


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
        ({"axes": {"a": [1, 2, 1]}}, "/axes/a/2", "1 stands twice on the axis (also at 0)"),
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
def test_each_fault_is_named_with_its_place(document: dict[str, Any], where: str, complaint: str) -> None:
    found = faults(document)
    assert where in found, found
    assert complaint in found[where]
    assert resolves(where, {"name": "n", "experiment": "toy", **document})


@pytest.mark.parametrize("document", [None, [], "spec", 3, [{"name": "n"}]])
def test_what_is_no_object_is_no_spec(document: Any) -> None:
    with pytest.raises(SpecError, match="a sweep spec is an object"):
        parse(document)


def test_missing_keys_are_named() -> None:
    with pytest.raises(SpecError) as caught:
        parse({})
    assert {fault.pointer for fault in caught.value.faults} == {"/name", "/experiment"}


class SizedParams(Params):
    """A batch that one dataset may fill and another not."""

    dataset: str = "small"
    batch: int = 1

    def conflicts(self, dataset: DatasetRef | None) -> Iterable[tuple[str, str]]:
        if dataset is not None and self.batch > dataset.num_train:
            yield "batch", f"{dataset.name} holds {dataset.num_train}"


def test_a_cell_is_held_against_its_own_dataset_where_that_is_known() -> None:
    experiment = replace(TOY, params=SizedParams)
    document = {"name": "n", "experiment": "toy", "axes": {"dataset": ["small", "large"], "batch": [1, 5, 50]}}
    sized = validate(parse(document), experiment, ["toy"])
    assert len(list(sized.cells())) == 6
    datasets = {name: DatasetRef(name, "d" * 64, n, 1, 2, None, {}) for name, n in (("small", 4), ("large", 10))}
    with pytest.raises(SpecError) as caught:
        list(sized.cells(datasets))
    # One fault a place: what is too much for the small one comes first.
    assert {fault.pointer: fault.detail for fault in caught.value.faults} == {
        "/axes/batch/1": "small holds 4",
        "/axes/batch/2": "small holds 4",
    }
    only_large = validate(parse({**document, "fixed": {"dataset": "large"}, "axes": {"batch": [1, 5]}}), experiment, [])
    assert [params.__dict__["batch"] for params in only_large.cells(datasets)] == [1, 5]


def test_a_conflict_between_defaults_and_an_axis_points_at_the_axis_value() -> None:
    assert set(faults({"axes": {"a": [1, 2], "d": [False, True], "c": ["v", "w"]}})) == {"/axes/d/1"}


def test_a_billion_cells_are_refused_before_one_is_made() -> None:
    axes = {name: {"range": [1000]} for name in ("a", "e", "f")}
    found = faults({"axes": axes})
    assert found == {"/axes": f"the axes multiply to 1,000,000,000 cells; a sweep has at most {MAX_CELLS:,}: split it"}


def test_zipped_axes_count_once_towards_the_limit() -> None:
    axes = {name: {"range": [1000]} for name in ("a", "e", "f")}
    assert grid({"axes": axes, "zip": [["a", "e"]]}).factors == [["a", "e"], ["f"]]


def test_faults_are_bounded_and_the_rest_counted() -> None:
    found = faults({"axes": {"a": ["x"] * 10_000}})
    assert len(found) == MAX_FAULTS + 1
    assert found[""] == "and 1 more"  # an axis is given up once there are too many
    conflicts = {"axes": {"a": [1], "d": [True], "c": ["w"]}, "include": [{"a": n, "d": True} for n in range(40)]}
    assert len(faults(conflicts)) <= MAX_FAULTS + 1


def test_all_faults_come_at_once() -> None:
    document = {"axes": {"a": ["x"], "q": [1], "b": {"linspace": [0]}}, "fixed": {"c": "x"}, "exclude": [{"f": 0.5}]}
    assert set(faults(document)) == {"/axes/a/0", "/axes/q", "/axes/b", "/fixed/c", "/exclude/0/f"}


# -- properties of refusal -----------------------------------------------------------------------------------------


def steps_of(where: str) -> list[str]:
    return [part.replace("~1", "/").replace("~0", "~") for part in where.split("/")[1:]]


def resolves(where: str, document: Any) -> bool:
    """Whether the pointer leads somewhere, or to a key that is missing from an object that is there."""
    value = document
    for number, step in enumerate(steps := steps_of(where)):
        if isinstance(value, dict) and step in value:
            value = value[step]
        elif isinstance(value, list) and step.isdigit() and int(step) < len(value):
            value = value[int(step)]
        else:
            return isinstance(value, dict) and number == len(steps) - 1
    return True


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(value, dict):
        for name in value:
            yield from places(value[name], (*path, name))
    elif isinstance(value, list):
        for index in range(len(value)):
            yield from places(value[index], (*path, index))


def replaced(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    out = copy.deepcopy(document)
    holder = out
    for step in path[:-1]:
        holder = holder[step]
    holder[path[-1]] = value
    return out


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
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["a", "b", "c", "linspace", "range", "axes"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.text(max_size=3) | st.sampled_from([*"abcdef", "linspace", "logspace", "range"]), inner, max_size=4
        )
    ),
    max_leaves=8,
)


def test_the_full_document_is_valid() -> None:
    assert len(cells(FULL)) == 2 * 3 * 2 - 2 + 1


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("path", NUMBERS, ids=lambda path: "/".join(map(str, path)))
def test_no_number_that_is_not_finite_is_taken_anywhere(path: tuple[Any, ...], bad: float) -> None:
    document = replaced(FULL, path, bad)
    with pytest.raises(SpecError) as caught:
        list(grid(document).cells())
    assert all(resolves(fault.pointer, document) for fault in caught.value.faults)


@given(st.sampled_from([path for path in places(FULL) if path]), JSON)
def test_any_other_value_anywhere_is_taken_or_refused_with_its_place(path: tuple[Any, ...], value: Any) -> None:
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


@given(JSON)
def test_anything_at_all_is_a_spec_or_a_spec_error(document: Any) -> None:
    refused: list[Fault] = []
    try:
        parse(document)
    except SpecError as error:
        refused = list(error.faults)
    assert all(resolves(fault.pointer, document) for fault in refused)


@given(st.lists(st.text(min_size=1), min_size=1, max_size=4))
def test_pointers_escape_what_stands_in_keys(parts: list[str]) -> None:
    nested: Any = "here"
    for part in reversed(parts):
        nested = {part: nested}
    value = nested
    for step in steps_of(pointer(*parts)):
        value = value[step]
    assert value == "here"
