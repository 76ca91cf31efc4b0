"""Validation: a spec is refused whole, with a JSON pointer to each fault and what would be accepted.

Each value is checked alone, against the experiment's own parameter model, where it is written (``/axes/eta/3``). What
is cheap to check comes first: a generator makes its values only where nothing else is wrong with the spec.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any

from pydantic import ConfigDict, FailFast, TypeAdapter, ValidationError

from creditgrid.core.errors import did_you_mean
from creditgrid.core.experiment import Experiment
from creditgrid.core.spec.axes import MAX_VALUES, expand, generator, size
from creditgrid.core.spec.faults import MAX_FAULTS, Faults, shown
from creditgrid.core.spec.grid import Grid
from creditgrid.core.spec.model import MAX_CELLS, SweepSpec
from creditgrid.core.spec.rules import hashable

SHOWN = 3
"""Reasons in the message about one value."""


def validate(spec: SweepSpec, experiment: Experiment, kinds: Iterable[str]) -> Grid:
    """Check every value of ``spec`` against the experiment's parameters; ``kinds`` are the task kinds it may run.

    Raises:
        SpecError: with a pointer to each fault.
    """
    faults = Faults()
    experiment = _measuring(spec, experiment, faults)
    fields = _Fields(experiment, faults)
    fixed = fields.values(spec.fixed, "fixed")
    for name in sorted(spec.axes.keys() & spec.fixed.keys()):
        faults.add(("axes", name), f"{shown(name)} is both fixed and an axis: give it in one place")
    sizes = _sizes(spec, faults)
    factors = _factors(spec, sizes, faults)
    exclude = [fields.values(rule, "exclude", i) for i, rule in enumerate(spec.exclude)]
    include = [fields.values(entry, "include", i) for i, entry in enumerate(spec.include)]
    for i, rule in enumerate(spec.exclude):
        if not rule:
            faults.add(("exclude", i), "an empty rule would leave out every cell")
    _refuse_absent(spec, experiment, faults)
    _refuse_kinds(spec, experiment, sorted(kinds), faults)
    if not faults and (cells := math.prod(sizes[factor[0]] for factor in factors) + len(include)) > MAX_CELLS:
        faults.add(("axes",), f"the axes have {cells:,} combinations; a sweep has at most {MAX_CELLS:,}: split it")
    fields.ends(spec.axes)
    axes = {
        name: fields.axis(name, axis) for name, axis in spec.axes.items() if name in sizes and isinstance(axis, list)
    }
    faults.refuse()
    axes |= {name: fields.axis(name, axis) for name, axis in spec.axes.items() if name not in axes}
    faults.refuse()
    for factor in factors:
        _refuse_repeats(spec, axes, factor, faults)
    _refuse_unused(experiment, fixed, axes, include, faults)
    faults.refuse()
    return Grid(spec, experiment, fixed, {name: axes[name] for name in spec.axes}, factors, exclude, include)


def _measuring(spec: SweepSpec, experiment: Experiment, faults: Faults) -> Experiment:
    """The experiment with the measurements that the spec asks for; each that cannot be measured is a fault."""
    measured: list[str] = []
    for index, name in enumerate(spec.measurements):
        try:
            experiment.measuring([*measured, name])
        except ValueError as error:
            faults.add(("measurements", index), str(error))
        else:
            measured.append(name)
    return experiment.measuring(measured)


class _Fields:
    """Checks single values, each against its field of the parameter model, and collects faults."""

    def __init__(self, experiment: Experiment, faults: Faults) -> None:
        self._experiment, self._faults = experiment, faults
        config = ConfigDict(strict=True, allow_inf_nan=False)
        self._adapters: dict[str, TypeAdapter[Any]] = {}
        self._lists: dict[str, TypeAdapter[Any]] = {}
        for name, field in experiment.params.model_fields.items():
            constrained: Any = Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
            self._adapters[name] = TypeAdapter(constrained, config=config)
            self._lists[name] = TypeAdapter(Annotated[list[constrained], FailFast()], config=config)

    def value(self, name: str, value: Any, *where: str | int) -> Any:
        """The validated value; None after a fault."""
        adapter = self._adapters.get(name)
        if adapter is None:
            self._faults.add(where, partial(self._unknown, name))
            return None
        try:
            valid = adapter.validate_python(value)
        except ValidationError as error:
            self._faults.add(where, partial(_invalid, name, value, error))
            return None
        if type(valid) is int and not -(2**63) <= valid < 2**63:
            self._faults.add(where, lambda: f"{name}: a whole number has at most 64 bits; got {shown(value)}")
            return None
        return 0.0 if type(valid) is float and valid == 0 else valid  # -0.0 equals 0.0 and would have another key

    def values(self, given: Mapping[str, Any], *where: str | int) -> dict[str, Any]:
        """The validated values of the object at the pointer ``where``."""
        return {name: self.value(name, value, *where, name) for name, value in given.items()}

    def ends(self, axes: Mapping[str, Any]) -> None:
        """Check the first and the last value of each generator, and the names of the axes."""
        for name, axis in axes.items():
            if name not in self._adapters:
                self.value(name, None, "axes", name)
            elif isinstance(axis, dict):
                before = len(self._faults)
                try:
                    count, at = generator(axis)
                except ValueError:
                    continue  # a fault of its size
                for index in {0, count - 1} if count > 0 else ():
                    if len(self._faults) == before:
                        self.value(name, at(index), "axes", name)

    def axis(self, name: str, axis: Any) -> list[Any]:
        """The validated values of a known axis of a sound size; its first fault if it is generated, or some of them."""
        if name not in self._lists:
            return []
        given, before, start = expand(axis), len(self._faults), 0
        valid: list[Any] = []
        while start < len(given) and len(self._faults) <= before + MAX_FAULTS:
            try:
                valid = self._lists[name].validate_python(given[start:])
                break
            except ValidationError as error:  # at the first value that is not valid
                index = start + int(error.errors(include_url=False, include_input=False)[0]["loc"][0])
                self._axis_value(name, axis, index, given[index])
                if isinstance(axis, dict):
                    break
                start = index + 1
        if len(self._faults) > before:
            return []
        for index, item in enumerate(valid):
            if type(item) is int and not -(2**63) <= item < 2**63:
                self._axis_value(name, axis, index, item)
        if 0 in valid:  # -0.0 equals 0.0 and would have another key
            valid = [0.0 if type(item) is float and item == 0 else item for item in valid]
        return valid

    def _axis_value(self, name: str, axis: Any, index: int, value: Any) -> None:
        self.value(name, value, "axes", name, *(() if isinstance(axis, dict) else (index,)))

    def _unknown(self, name: str) -> str:
        known = sorted(self._adapters)
        hint = f"{did_you_mean(name, known)}; it has {', '.join(known)}"
        return f"{self._experiment.name} has no parameter {shown(name)}{hint}"


def _invalid(name: str, value: Any, error: ValidationError) -> str:
    details = [item["msg"] for item in error.errors(include_url=False, include_input=False)[:SHOWN]]
    more = error.error_count() - len(details)
    return f"{name}: {'; '.join(details)}{f'; and {more:,} more' if more else ''}; got {shown(value)}"


def _sizes(spec: SweepSpec, faults: Faults) -> dict[str, int]:
    """The number of values of each axis that has a sound one."""
    sizes = {}
    for name, axis in spec.axes.items():
        try:
            sizes[name] = size(axis)
        except ValueError as error:
            faults.add(("axes", name), str(error))
    if (total := sum(sizes.values())) > MAX_VALUES:
        faults.add(("axes",), f"the axes have {total:,} values in all; a sweep has at most {MAX_VALUES:,}: split it")
    return sizes


def _factors(spec: SweepSpec, sizes: Mapping[str, int], faults: Faults) -> list[list[str]]:
    """The axes in order; the axes of one zip group are together, at the place of the first."""
    group_of: dict[str, int] = {}
    for index, group in enumerate(spec.zip):
        for name in group:
            if name not in spec.axes:
                faults.add(("zip", index), partial(_no_axis, name, spec.axes))
            elif name in group_of:
                faults.add(("zip", index), f"{shown(name)} advances with more than one group")
            else:
                group_of[name] = index
        lengths = {name: sizes[name] for name in group if name in sizes}
        if len(group) < 2:
            faults.add(("zip", index), "a zip group names at least two axes")
        elif len(set(lengths.values())) > 1:
            text = ", ".join(f"{name} has {n}" for name, n in lengths.items())
            faults.add(("zip", index), f"axes that advance together have one length; {text}")
    factors: dict[int | str, list[str]] = {}
    for name in spec.axes:
        index_or_name = group_of.get(name, name)
        group = spec.zip[index_or_name] if isinstance(index_or_name, int) else [name]
        factors.setdefault(index_or_name, group)
    return list(factors.values())


def _no_axis(name: str, axes: Iterable[str]) -> str:
    return f"{shown(name)} is not an axis of this spec{did_you_mean(name, axes)}"


def _refuse_absent(spec: SweepSpec, experiment: Experiment, faults: Faults) -> None:
    """Note each required parameter that some cell would lack."""
    required = {name for name, field in experiment.params.model_fields.items() if field.is_required()}
    for name in sorted(required - spec.fixed.keys()):
        if name not in spec.axes and (spec.axes or not spec.include):
            faults.add(spec.fixed_place(), f"{experiment.name} needs {name}: give it in fixed or as an axis")
        for i, entry in enumerate(spec.include):
            if name not in entry:
                faults.add(("include", i), f"{experiment.name} needs {name}: give it here or in fixed")


def _refuse_kinds(spec: SweepSpec, experiment: Experiment, known: Sequence[str], faults: Faults) -> None:
    """Note each task kind in ``resources`` and ``timeout_s`` that the experiment does not run."""
    for part, asked in (("resources", spec.resources), ("timeout_s", spec.timeout_s)):
        for kind in asked:
            if kind not in known:
                close = did_you_mean(kind, known)
                detail = f"there is no task kind {shown(kind)}{close}; {experiment.name} runs {', '.join(known)}"
                faults.add((part, kind), detail)


def _refuse_unused(
    experiment: Experiment,
    fixed: Mapping[str, Any],
    axes: Mapping[str, Sequence[Any]],
    include: Sequence[Mapping[str, Any]],
    faults: Faults,
) -> None:
    """Note each fixed parameter and each axis that belongs to units of which no cell has one."""

    def chosen(parameter: str) -> Iterable[Any]:
        entries = [entry[parameter] for entry in include if parameter in entry]
        if parameter in axes:
            return [*axes[parameter], *entries]
        field = experiment.params.model_fields[parameter]
        return [*([fixed[parameter]] if parameter in fixed else [field.default]), *entries]

    owned = experiment.params.owned
    for part, given in (("fixed", fixed), ("axes", axes)):
        for name, detail in experiment.params.unused([name for name in given if name in owned], chosen):
            faults.add((part, name), detail)


def _refuse_repeats(spec: SweepSpec, axes: Mapping[str, Sequence[Any]], factor: Sequence[str], faults: Faults) -> None:
    """Note the first value, or point of zipped axes, that an axis has twice."""
    points = list(zip(*(axes[name] for name in factor), strict=True))
    with contextlib.suppress(TypeError):  # lists and objects have no hash
        if len(set(points)) == len(points):
            return
    first: dict[Any, int] = {}
    for index, point in enumerate(points):
        # Values of one field are equal if they have one JSON text; a field of several types may have 1, 1.0 and true.
        earlier = first.setdefault(tuple((type(value), hashable(value)) for value in point), index)
        if earlier != index:
            repeated = shown(point[0]) if len(factor) == 1 else f"{' with '.join(factor)} = {shown(point)}"
            detail = f"{repeated} occurs twice on the axis (also at {earlier})"
            faults.add(spec.axis_place(factor[0], index), detail)
            return
