"""Checks of experiments."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from creditgrid.core.contract.checks import Checks, Violation
from creditgrid.core.contract.random_state import watched
from creditgrid.core.contract.settings import sample
from creditgrid.core.datasets import DatasetRef, resolve
from creditgrid.core.experiment import Experiment, Params
from creditgrid.core.experiments.registry import registry
from creditgrid.core.rows import table
from creditgrid.core.task import Arrays, Output, Progress, Task

DATASET = "digits"
TINY: Mapping[str, Any] = {
    "dataset": DATASET,
    "num_blocks": 2,
    "d_hidden": 8,
    "batch_size": 32,
    "train_epochs": 1,
    "fit_epochs": 1,
    "method": "oracle_bp",
    "logs_every": 1,
}
"""Values of parameters that make the shared stages short, for an experiment that has them."""


class TriedExperiment:
    """An experiment, and one small cell of it."""

    group = "experiments"

    def __init__(self, experiment: Experiment) -> None:
        self.experiment, self.name = experiment, experiment.name
        self.written: Any = experiment.params

    @property
    def dataset(self) -> DatasetRef | None:
        return resolve(DATASET) if "dataset" in self.experiment.params.model_fields else None

    def params(self) -> Params:
        """The parameters of the cell.

        Raises:
            Violation: no small cell makes sense.
        """
        fields = self.experiment.params.model_fields
        given = {name: value for name, value in TINY.items() if name in fields and name != "fit_epochs"}
        given |= {name: sample(field) for name, field in fields.items() if field.is_required() and name not in given}
        params = self.experiment.params.model_validate(given)
        for name, detail in params.conflicts(self.dataset):
            raise Violation(f"a cell with {given} has a conflict at {name}: {detail}")
        return params

    def named(self) -> tuple[Task, list[Task]]:
        """The measure task and all before it, parents first."""
        task, ancestors = self.experiment.cell(self.params(), self.dataset)
        return task, list(dict.fromkeys(ancestors))

    def rows(self) -> list[Mapping[str, Any]]:
        """The rows of the cell, computed here."""
        task, ancestors = self.named()
        kinds = registry().kinds_of(self.experiment)
        artifacts: dict[str, Arrays] = {}
        for stage in ancestors:
            artifacts[stage.key] = _computed(kinds[stage.kind], stage, artifacts).arrays or {}
        rows = _computed(kinds[task.kind], task, artifacts).rows
        if rows is None:
            raise Violation(f"{task.kind} yielded an output without rows")
        return list(rows)


def _computed(kind: Any, task: Task, artifacts: Mapping[str, Arrays]) -> Output:
    outputs = []
    for item in kind.run([task], {key: artifacts[key] for key in task.parents.values()}, torch.device("cpu")):
        if isinstance(item, Output):
            outputs.append(item)
        elif isinstance(item, Progress) and not 0 <= item.done <= item.total:
            raise Violation(f"{kind.name} reports {item.done} of {item.total} as its progress")
    if [output.key for output in outputs] != [task.key]:
        raise Violation(f"{kind.name} yielded outputs of {len(outputs)} tasks for one task, or of another")
    return outputs[0]


CHECKS: Checks[TriedExperiment] = Checks()


@CHECKS.add("parameters are described", why="People choose them by their descriptions.", quick=True)
def described(subject: TriedExperiment) -> Iterator[str]:
    for name, field in subject.experiment.params.model_fields.items():
        if not field.description:
            yield f"the parameter {name!r} needs a description, with its unit: Field(…, description=…)"
    for name, column in subject.experiment.columns.items():
        if not column.description:
            yield f"the column {name!r} needs a description, with its unit"


@CHECKS.add("a cell names its tasks", why="A plan is made of them.", basic=True)
def names(subject: TriedExperiment) -> Iterator[str]:
    task, ancestors = subject.named()
    kinds = registry().kinds_of(subject.experiment)
    if task.kind != subject.experiment.measure.name:
        yield f"cell() names a {task.kind}, and the experiment measures by {subject.experiment.measure.name}"
    known: set[str] = set()
    for stage in (*ancestors, task):
        if stage.kind not in kinds:
            yield f"{stage.kind} is no task kind of the experiment: list it in kinds"
        if missing := set(stage.parents.values()) - known:
            yield f"{stage.kind} needs {len(missing)} tasks that cell() does not name before it"
        known.add(stage.key)


@CHECKS.add("equal cells have equal keys", why="An equal cell is not computed again.", quick=True)
def keys(subject: TriedExperiment) -> Iterator[str]:
    (task, ancestors), (again, same) = subject.named(), subject.named()
    if task.key != again.key or [stage.key for stage in ancestors] != [stage.key for stage in same]:
        yield "two calls of cell() with equal parameters give other keys"


@CHECKS.add("a small cell gives its rows", why="They are stored under the columns that it declares.", basic=True)
def gives_rows(subject: TriedExperiment) -> Iterator[str]:
    rows = subject.rows()
    if not rows:
        yield "its cell has no rows"
    try:
        table(subject.experiment, rows)
    except ValueError as error:
        yield str(error)


@CHECKS.add("equal cells have equal rows", why="A task that runs again must give the same rows.")
def deterministic(subject: TriedExperiment) -> Iterator[str]:
    changed: list[str] = []
    with watched(changed):
        first = subject.rows()
    if repr(first) != repr(subject.rows()):
        yield "two computations of one cell give other rows: every random number needs a seed"
    yield from (f"it changes the global random state of {library}" for library in changed)


@CHECKS.add("a summary of the rows is made", why="People read it first.")
def summary(subject: TriedExperiment) -> Iterator[str]:
    given = {**dict(subject.params()), "diverged": False}
    made = subject.experiment.summarise([{**given, **row} for row in subject.rows()])
    for line in made.rows:
        if missing := [name for name in made.columns if name not in line]:
            yield f"a line of the summary lacks {', '.join(missing)}"
            return
