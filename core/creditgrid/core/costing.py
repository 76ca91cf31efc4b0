"""Costing: what the tasks of a grid cost, asked of their kinds' cost models while the tasks are named.

Equal questions are asked once: of a million cells a few hundred differ in what matters to their cost. A cost model may
be a package's own code: one that raises, takes too long or returns nonsense is named, and its tasks count as unknown.
Tasks of a kind without a cost model are compared with ``similar`` ones.
"""

from __future__ import annotations

import operator
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, TypeAlias

from creditgrid.core.datasets import DatasetRef
from creditgrid.core.task import Task, TaskKind
from creditgrid.core.work import LARGEST, Cost, CostModel, Work, checked

LONGEST_S, EACH_S = 2.0, 1e-4
"""Seconds that the cost model of one kind may take in a plan, and how much more for each answer."""
REMEMBERED = 20_000
"""Costs that are remembered; the costs of a grid's cells come again soon or never."""

_EPOCHS = ("epochs", "epoch", "train_epochs", "fit_epochs")
_SIZES = ("steps", "num_steps", "k", "images", "num_images", "samples", "num_samples")
SCALES = (*_EPOCHS, *_SIZES)
"""Parameters that say how long a task takes, in packages that declare no cost."""

_Matters: TypeAlias = Callable[[Mapping[str, Any]], Any]


class Given(NamedTuple):
    """What a cost model may use besides the task."""

    parents: Mapping[str, Task]
    """The task's parents by role."""
    dataset: DatasetRef | None
    """That of the cell; None if the experiment has none."""


class _TooSlow(BaseException):
    """Raised inside a cost model; not an Exception, so that it is not swallowed."""


class Costing:
    """Costs of tasks.

    Args:
        kinds: the kinds of the tasks, by name.
    """

    def __init__(self, kinds: Mapping[str, TaskKind]) -> None:
        self._kinds = kinds
        self._matters: dict[str, _Matters | None] = {}
        self._known: dict[Any, Cost | None] = {}
        self._groups: dict[Any, int] = {}
        self._alike: list[int] = []  # for each stage the group of those that cost as much
        self._left_s = dict.fromkeys(kinds, LONGEST_S)
        self._interrupts = _catch_alarms()
        self.faults: dict[str, str] = {}
        """By kind: what is wrong with its cost model."""

    def of_cell(self, task: Task, shared: str, ancestors: Sequence[Task], dataset: DatasetRef | None) -> Cost | None:
        """The cost of a cell's task; cells with the same ``shared`` text have the same parents."""
        return self._of((shared, self._values(task)), task, ancestors, dataset)

    def of_stage(
        self, task: Task, parents: Sequence[int], ancestors: Sequence[Task], dataset: DatasetRef | None
    ) -> Cost | None:
        """The cost of the next stage, by number; ``parents`` are the numbers of its parents."""
        asked = task.kind, id(dataset), self._values(task), *(self._alike[number] for number in parents)
        try:
            self._alike.append(self._groups.setdefault(asked, len(self._groups)))
        except TypeError:  # a parameter that is a list is like no other
            self._alike.append(-1 - len(self._alike))
        return self._of(asked, task, ancestors, dataset)

    def varies(self, task: Task) -> bool:
        """Whether the cost of a cell's task depends on more than its parents."""
        return self._parameters_of(task) is not None

    def _parameters_of(self, task: Task) -> _Matters | None:
        try:
            return self._matters[task.kind]
        except KeyError:
            return self._matters.setdefault(task.kind, self._parameters(task))

    def _values(self, task: Task) -> Any:
        """The values of the parameters that matter to the cost of the task."""
        matters = self._parameters_of(task)
        try:
            return None if matters is None else matters(task.params)
        except KeyError:  # tasks of the kind have different parameters
            return tuple(task.params.items())

    def _of(self, asked: Any, task: Task, ancestors: Sequence[Task], dataset: DatasetRef | None) -> Cost | None:
        try:
            return self._known[asked]
        except (KeyError, TypeError):  # not asked before; or a parameter that is a list
            found = self.of(task, ancestors, dataset)
        if len(self._known) >= REMEMBERED:
            self._known.clear()
        with suppress(TypeError):
            self._known[asked] = found
        return found

    def of(self, task: Task, ancestors: Sequence[Task], dataset: DatasetRef | None) -> Cost | None:
        """The cost of a task, whose parents are among its ``ancestors``; None if it is unknown."""
        model = self._kinds[task.kind].cost
        if task.kind in self.faults:
            return None
        if model is None:
            return similar(task, ancestors, dataset)
        by_key = {other.key: other for other in ancestors}
        try:
            parents = {role: by_key[key] for role, key in task.parents.items()}
            return checked(self._asked(task.kind, model, task, Given(parents, dataset)))
        except _TooSlow:
            self.faults[task.kind] = f"its cost model takes too long (more than {LONGEST_S:g} s)"
        except (Exception, SystemExit) as error:  # a package's code may even try to end the process
            self.faults[task.kind] = f"its cost model failed: {type(error).__name__}: {error}"[:300]
        return None

    def _parameters(self, task: Task) -> _Matters | None:
        """Picks the parameters that matter to the cost of tasks of this kind; None if none does."""
        kind = self._kinds[task.kind]
        names = self._named(kind, task)
        if all(name in task.params for name in names):
            return operator.itemgetter(*names) if names else None
        return lambda params: tuple([params.get(name) for name in names])

    def _named(self, kind: TaskKind, task: Task) -> list[str]:
        """The names in ``cost_by``, or those of all parameters; without a cost model, those that `similar` takes."""
        if kind.cost is None:
            return [name for name in SCALES if name in task.params]
        given: Any = task.params if kind.cost_by is None else kind.cost_by
        listed = isinstance(given, Collection) and not isinstance(given, str)
        if listed and all(isinstance(name, str) for name in given):
            return list(given)
        self.faults[kind.name] = f"its cost_by is {given!r:.80}: it must be a tuple of names of parameters"
        return []

    def _asked(self, kind: str, model: CostModel, task: Task, given: Given) -> Cost | None:
        """The model's answer, within what is left of the kind's time.

        Raises:
            _TooSlow: it took too long; where signals can be used, it is interrupted.
        """
        left = self._left_s[kind] + EACH_S
        started = time.perf_counter()
        if self._interrupts:
            signal.setitimer(signal.ITIMER_REAL, left)
        try:
            return model(task, given)
        finally:
            if self._interrupts:
                signal.setitimer(signal.ITIMER_REAL, 0.0)
            left -= time.perf_counter() - started
            self._left_s[kind] = min(left, LONGEST_S)
            if left <= 0:
                raise _TooSlow


def _catch_alarms() -> bool:
    """Let an alarm interrupt a cost model, if nobody else in this process uses alarms."""
    if threading.current_thread() is not threading.main_thread():  # only there can signals be caught
        return False
    before = signal.getsignal(signal.SIGALRM)
    if before is signal.SIG_DFL:
        signal.signal(signal.SIGALRM, _interrupt)
    return before in (signal.SIG_DFL, _interrupt)


def _interrupt(*_: object) -> None:
    raise _TooSlow


def similar(task: Task, ancestors: Iterable[Task], dataset: DatasetRef | None) -> Cost:
    """The cost of a task of a kind without a cost model, in units that only tasks of the same kind share.

    It is proportional to the task's epochs (or steps, or images), and for epochs to the images of the dataset. An
    ancestor's epochs do not count: whatever a checkpoint took to train, it is measured in the same time.
    """
    scale = 1.0
    inherited = {name.removeprefix("train_").removeprefix("fit_") for other in ancestors for name in other.params}
    for names in (_EPOCHS, _SIZES):
        for name in names:
            value = task.params.get(name)
            if not isinstance(value, int | float) or name.removeprefix("train_").removeprefix("fit_") in inherited:
                continue
            scale *= min(max(value, 1), LARGEST**0.3)
            if names is _EPOCHS and dataset is not None:
                scale *= dataset.num_train
            break
    return Cost(Work(launches=scale))
