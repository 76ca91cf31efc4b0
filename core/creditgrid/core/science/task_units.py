"""The units that a task has chosen, as a worker needs them: its method, its rule, its measurements."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, TypeVar

from creditgrid.core.task import Inputs, Task
from creditgrid.core.units.brought import units_of
from creditgrid.core.units.measurement import Measurement
from creditgrid.core.units.method import Method
from creditgrid.core.units.rule import Rule
from creditgrid.core.units.unit import Unit, parameters_of

Chosen = TypeVar("Chosen", bound=Unit)


def method_of(task: Task, inputs: Inputs) -> Method:
    """The credit method of a measure task, with its parameters.

    Raises:
        TaskError: it is not known here.
    """
    return _setting(units_of(task, inputs).method(task.params["method"]), task)


def fit_method_of(task: Task, inputs: Inputs) -> Method:
    """The method that a fit task fits; its parameters are among the task's by the names of its fields.

    Raises:
        TaskError: it is not known here.
    """
    method = units_of(task, inputs).method(task.params["estimator"])
    return method.model_validate({name: task.params[name] for name in method.model_fields if name in task.params})


def rule_of(task: Task, inputs: Inputs) -> Rule:
    """The update rule of a measure task, with its parameters.

    Raises:
        TaskError: it is not known here.
    """
    return _setting(units_of(task, inputs).rule(task.params["rule"]), task)


def measurements_of(task: Task, inputs: Inputs) -> Sequence[Measurement]:
    """The measurements that a measure task's sweep asks for.

    Raises:
        TaskError: one is not known here.
    """
    units = units_of(task, inputs)
    return [units.measurement(name)() for name in task.params.get("measurements", ())]


def _setting(unit: type[Chosen], task: Task) -> Chosen:
    values = tuple([task.params.get(name) for name in parameters_of(unit)])
    try:
        found = _cached(unit, values)
    except TypeError:  # a parameter that is a list
        found = _of(unit, values)
    assert isinstance(found, unit)
    return found


def _of(unit: type[Unit], values: tuple[Any, ...]) -> Unit:
    return unit.of(dict(zip(parameters_of(unit), values, strict=True)))


_cached = lru_cache(1024)(_of)  # a call has thousands of tasks and few units
