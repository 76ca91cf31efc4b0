"""Expansion of specs against a second, plainer implementation, and cells whose values make no sense together."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_spec import DEFAULTS, TOY, cell, cells, faults, grid

from creditgrid.core.datasets import DatasetRef
from creditgrid.core.errors import SpecError
from creditgrid.core.experiment import Params
from creditgrid.core.spec.model import parse
from creditgrid.core.spec.validation import validate

# -- a second, plainer implementation --------------------------------------------------------------------------------


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
def test_expansion_equals_the_plain_one(document: dict[str, Any]) -> None:
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
    assert "occurs twice" in faults(repeated)["/axes/a/2"]


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
    assert "occurs twice" in faults({"fixed": {"a": 1}, "axes": {"b": [0.0, -0.0]}})["/axes/b/1"]


# -- values that make no sense together ----------------------------------------------------------------------------


class SizedParams(Params):
    """A batch that is too large for some datasets."""

    dataset: str = "small"
    batch: int = 1

    def conflicts(self, dataset: DatasetRef | None) -> Iterable[tuple[str, str]]:
        if dataset is not None and self.batch > dataset.num_train:
            yield "batch", f"{dataset.name} holds {dataset.num_train}"


def test_a_cell_is_checked_against_its_own_dataset_once_that_is_resolved() -> None:
    experiment = replace(TOY, params=SizedParams)
    document = {"name": "n", "experiment": "toy", "axes": {"dataset": ["small", "large"], "batch": [1, 5, 50]}}
    sized = validate(parse(document), experiment, ["toy"])
    assert len(list(sized.cells())) == 6
    datasets = {name: DatasetRef(name, "d" * 64, n, 1, 2, None, {}) for name, n in (("small", 4), ("large", 10))}
    with pytest.raises(SpecError) as caught:
        list(sized.cells(datasets))
    # One fault for each pointer: the small dataset comes first.
    assert {fault.pointer: fault.detail for fault in caught.value.faults} == {
        "/axes/batch/1": "small holds 4",
        "/axes/batch/2": "small holds 4",
    }
    only_large = validate(parse({**document, "fixed": {"dataset": "large"}, "axes": {"batch": [1, 5]}}), experiment, [])
    assert [params.__dict__["batch"] for params in only_large.cells(datasets)] == [1, 5]


def test_a_conflict_between_defaults_and_an_axis_points_at_the_axis_value() -> None:
    assert set(faults({"axes": {"a": [1, 2], "d": [False, True], "c": ["v", "w"]}})) == {"/axes/d/1"}
