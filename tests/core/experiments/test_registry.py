"""The registry: experiments are found by entry point, and an invalid one does not affect the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Literal

import pytest
from pydantic import Field, field_validator

from creditgrid.core.errors import SpecError
from creditgrid.core.experiment import Column, Experiment, Params, Summary
from creditgrid.core.experiments import registry as module
from creditgrid.core.experiments.registry import ENTRY_POINTS, Registry, registry
from creditgrid.core.experiments.stages import DATA, STAGES
from creditgrid.core.task import TaskKind


def run(tasks: Any, inputs: Any, device: Any) -> Any:
    raise AssertionError("nothing is run here")


class GoodParams(Params):
    x: int = 0
    word: Literal["u", "v"] | None = None


def experiment(name: str, params: type[Params] = GoodParams, **changes: Any) -> Experiment:
    made = Experiment(
        name,
        "Title",
        params,
        {"score": Column("float64", "A number.")},
        TaskKind(f"measure_{name}", 1, run),
        lambda params, dataset: (TaskKind("unused", 1, run).task({}), ()),
        lambda rows: Summary("", [], [], []),
    )
    return replace(made, **changes)


class Point:
    """An entry point of a package with the same name."""

    def __init__(self, name: str, load: Callable[[], Any], package: str | None = None) -> None:
        self.name, self.value, self.load = name, f"{name}_package:EXPERIMENT", load
        self.dist = type("Distribution", (), {"name": package or f"{name}-package"})


def found(monkeypatch: pytest.MonkeyPatch, *points: Point) -> Registry:
    def entry_points(*, group: str) -> Iterable[Point]:
        assert group == ENTRY_POINTS
        return points

    monkeypatch.setattr(module, "entry_points", entry_points)
    return registry.__wrapped__()


def test_this_installation_has_the_line_search_and_the_plugin_of_the_tests() -> None:
    known = registry()
    assert {"linesearch", "noop"} <= set(known.experiments)
    assert known.broken == {}
    assert {"data", "probe", "feedback", "train", "fit", "linesearch", "noop", "noop_base"} <= set(known.kinds)
    assert set(known.kinds_of(known.experiments["noop"])) == {*(kind.name for kind in STAGES), "noop", "noop_base"}


def test_a_valid_experiment_is_found_with_its_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = TaskKind("own_stage", 1, run)
    one = experiment("one", kinds=(stage,))
    known = found(monkeypatch, Point("one", lambda: one))
    assert known.experiment("one") == one
    assert known.kinds["own_stage"] is stage
    assert known.kinds["measure_one"] is one.measure


def raising(error: BaseException) -> Callable[[], Any]:
    def load() -> Any:
        raise error

    return load


class ListParams(Params):
    x: list[int] = Field(default_factory=list)


class UnionParams(Params):
    x: int | str = 0


class MixedParams(Params):
    x: Literal["u", 1] = 1


class ValidatedParams(Params):
    x: int = 0

    @field_validator("x")
    @classmethod
    def _even(cls, x: int) -> int:
        return x


class UpperParams(Params):
    X: int = 0


class HostParams(Params):
    host: str = ""


SCORE = Column("float64", "A number.")
UNFIT = [
    (raising(ImportError("no such module")), "raised ImportError when bad_package:EXPERIMENT was imported: no such"),
    (raising(SystemExit(3)), "raised SystemExit"),
    (lambda: 42, "is a int, not an Experiment"),
    (lambda: experiment("good_by_another_name"), "registers 'bad' and declares 'good_by_another_name'"),
    (lambda: experiment("bad", UpperParams), "'X' is not lower_case_with_underscores"),
    (lambda: experiment("bad", columns={"a b": SCORE}), "'a b' is not lower_case_with_underscores"),
    (lambda: experiment("bad", HostParams), "'host' is reserved for the provenance of rows"),
    (lambda: experiment("bad", columns={"diverged": SCORE}), "'diverged' is reserved for the provenance of rows"),
    (lambda: experiment("bad", columns={"x": SCORE}), "x is both a parameter and a measured column"),
    (lambda: experiment("bad", ListParams), "list[int] cannot be a column"),
    (lambda: experiment("bad", UnionParams), "cannot be a column"),
    (lambda: experiment("bad", MixedParams), "cannot be a column"),
    (lambda: experiment("bad", ValidatedParams), "use conflicts()"),
    (lambda: experiment("bad", dict), "dict is not a Params"),
    (
        lambda: experiment("bad", columns={"score": Column("string", "A word.")}),
        "'score' is string here and float64 in a",
    ),
    (lambda: experiment("bad", kinds=(TaskKind("train", 1, run),)), "another package has a task kind 'train'"),
    (lambda: experiment("bad", kinds=(TaskKind("measure_a", 1, run),)), "another package has a task kind 'measure_a'"),
    (lambda: experiment("bad", measure=DATA), "'data' is taken"),
    (lambda: experiment("bad", measure=TaskKind("measure_a", 1, run)), "'measure_a' is taken"),
    (lambda: experiment("bad", kinds=(TaskKind("measure_bad", 1, run),)), "two of its task kinds have one name"),
]


@pytest.mark.parametrize(("load", "complaint"), UNFIT, ids=[complaint for _, complaint in UNFIT])
def test_an_invalid_experiment_does_not_affect_the_others(
    monkeypatch: pytest.MonkeyPatch, load: Callable[[], Any], complaint: str
) -> None:
    first, last = experiment("a"), experiment("z", columns={"other": SCORE})
    known = found(monkeypatch, Point("z", lambda: last), Point("bad", load), Point("a", lambda: first))
    assert set(known.experiments) == {"a", "z"}
    assert set(known.broken) == {"bad"}
    assert complaint in known.broken["bad"]
    assert "bad" in known.broken["bad"]  # the package is named
    with pytest.raises(SpecError) as caught:
        known.experiment("bad", "/here")
    (fault,) = caught.value.faults
    assert fault.pointer == "/here"
    assert fault.detail == f"the experiment 'bad' cannot be used: {known.broken['bad']}"


def test_a_name_belongs_to_the_first_package(monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = experiment("same"), experiment("same", measure=TaskKind("other", 1, run))
    known = found(monkeypatch, Point("same", lambda: one), Point("same", lambda: two))
    assert known.experiments == {"same": one}
    assert "which another package has registered" in known.broken["same"]


THIEVES = [
    lambda: experiment("a", columns={"score": Column("string", "A word.")}),
    lambda: experiment("a", measure=TaskKind("measure_shipped", 1, run)),
    lambda: experiment("a", kinds=(TaskKind("measure_shipped", 1, run),)),
]


@pytest.mark.parametrize("load", THIEVES, ids=["column", "measure", "stage"])
def test_no_package_replaces_a_shipped_column_or_kind(monkeypatch: pytest.MonkeyPatch, load: Callable[[], Any]) -> None:
    """Not even with an experiment that comes first in the alphabet."""
    shipped = experiment("shipped")
    known = found(monkeypatch, Point("a", load), Point("shipped", lambda: shipped, "creditgrid"))
    assert known.experiments == {"shipped": shipped}
    assert "package a-package: " in known.broken["a"]


def test_no_package_replaces_a_shipped_experiment(monkeypatch: pytest.MonkeyPatch) -> None:
    shipped, other = experiment("same"), experiment("same", measure=TaskKind("other", 1, run))
    points = Point("same", lambda: other, "a-package"), Point("same", lambda: shipped, "creditgrid")
    known = found(monkeypatch, *points)
    assert known.experiments == {"same": shipped}
    assert known.broken["same"] == "package a-package registers 'same', which another package has registered"


def test_one_package_may_share_a_stage_between_its_experiments(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = TaskKind("own_stage", 1, run)
    one, two = experiment("one", kinds=(stage,)), experiment("two", kinds=(stage,))
    assert found(monkeypatch, Point("one", lambda: one), Point("two", lambda: two)).broken == {}


def test_an_unknown_name_is_refused_with_the_known_names(monkeypatch: pytest.MonkeyPatch) -> None:
    known = found(monkeypatch, Point("linesearch", lambda: experiment("linesearch")))
    with pytest.raises(SpecError) as caught:
        known.experiment("linesaerch")
    (fault,) = caught.value.faults
    assert fault.pointer == "/experiment"
    assert fault.detail == "there is no experiment 'linesaerch' (did you mean 'linesearch'?); there are linesearch"
