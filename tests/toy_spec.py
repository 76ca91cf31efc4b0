"""A toy experiment for tests of specs, and strategies for its documents."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import pytest
from hypothesis import strategies as st
from pydantic import Field

from creditgrid.core.datasets import DatasetRef
from creditgrid.core.errors import SpecError
from creditgrid.core.experiment import Experiment, Params, Summary
from creditgrid.core.spec.grid import Grid
from creditgrid.core.spec.model import parse
from creditgrid.core.spec.validation import validate
from creditgrid.core.task import Task, TaskKind


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


def steps_of(where: str) -> list[str]:
    return [part.replace("~1", "/").replace("~0", "~") for part in where.split("/")[1:]]


def resolves(where: str, document: Any) -> bool:
    """Whether the pointer leads to a value, or to a key that is missing from an existing object."""
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
