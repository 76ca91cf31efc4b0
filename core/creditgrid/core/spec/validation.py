"""Validation: a spec is refused whole, with a JSON pointer to each fault and what would be accepted.

Each value is checked alone, against the experiment's own parameter model, where it is written (``/axes/eta/3``).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from creditgrid.core.errors import Fault, SpecError, did_you_mean
from creditgrid.core.experiment import Experiment
from creditgrid.core.fingerprint import canonical_json
from creditgrid.core.spec.axes import expand
from creditgrid.core.spec.faults import MAX_FAULTS, bounded, pointer, shown
from creditgrid.core.spec.grid import Grid
from creditgrid.core.spec.model import MAX_CELLS, SweepSpec


def validate(spec: SweepSpec, experiment: Experiment, kinds: Iterable[str]) -> Grid:
    """Check every value of ``spec`` against the experiment's parameters; ``kinds`` are the task kinds it may run.

    Raises:
        SpecError: with a pointer to each fault.
    """
    faults: list[Fault] = []
    fields = _Fields(experiment, faults)
    fixed = fields.values(spec.fixed, "fixed")
    axes = {name: fields.axis(name, axis) for name, axis in spec.axes.items()}
    for name in sorted(axes.keys() & fixed.keys()):
        faults.append(Fault(f"{name} is both fixed and an axis: give it in one place", pointer("axes", name)))
    factors = _factors(spec, axes, faults)
    exclude = [fields.values(rule, "exclude", i) for i, rule in enumerate(spec.exclude)]
    include = [fields.values(entry, "include", i) for i, entry in enumerate(spec.include)]
    faults.extend(
        Fault("an empty rule would leave out every cell", pointer("exclude", i))
        for i, rule in enumerate(exclude)
        if not rule
    )
    required = {name for name, field in experiment.params.model_fields.items() if field.is_required()}
    for name in sorted(required - fixed.keys()):
        if name not in axes and (axes or not include):
            detail = f"{experiment.name} needs {name}: give it in fixed or as an axis"
            faults.append(Fault(detail, spec.fixed_pointer()))
        faults.extend(
            Fault(f"{experiment.name} needs {name}: give it here or in fixed", pointer("include", i))
            for i, entry in enumerate(include)
            if name not in entry
        )
    known = sorted(kinds)
    faults.extend(
        Fault(
            f"there is no task kind {kind!r}{did_you_mean(kind, known)}; {experiment.name} runs {', '.join(known)}",
            pointer(part, kind),
        )
        for part, asked in (("resources", spec.resources), ("timeout_s", spec.timeout_s))
        for kind in asked
        if kind not in known
    )
    size = math.prod(len(axes[factor[0]]) for factor in factors) + len(include) if not faults else 0
    if size > MAX_CELLS:
        faults.append(
            Fault(f"the axes have {size:,} combinations; a sweep has at most {MAX_CELLS:,}: split it", "/axes")
        )
    if faults:
        raise SpecError(bounded(faults))
    return Grid(spec, experiment, fixed, axes, factors, exclude, include)


class _Fields:
    """Checks single values, each against its field of the parameter model, and collects faults."""

    def __init__(self, experiment: Experiment, faults: list[Fault]) -> None:
        self._experiment, self._faults = experiment, faults
        config = ConfigDict(strict=True, allow_inf_nan=False)
        self._adapters: dict[str, TypeAdapter[Any]] = {}
        for name, field in experiment.params.model_fields.items():
            constrained: Any = Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
            self._adapters[name] = TypeAdapter(constrained, config=config)

    def value(self, name: str, value: Any, where: str) -> Any:
        """The validated value; None after a fault."""
        adapter = self._adapters.get(name)
        if adapter is None:
            known = sorted(self._adapters)
            close = did_you_mean(name, known)
            detail = f"{self._experiment.name} has no parameter {name!r}{close}; it has {', '.join(known)}"
            self._faults.append(Fault(detail, where))
            return None
        try:
            valid = adapter.validate_python(value)
        except ValidationError as error:
            details = "; ".join(item["msg"] for item in error.errors(include_url=False))
            self._faults.append(Fault(f"{name}: {details}; got {shown(value)}", where))
            return None
        if type(valid) is int and not -(2**63) <= valid < 2**63:
            self._faults.append(Fault(f"{name}: a whole number has at most 64 bits; got {shown(value)}", where))
            return None
        return 0.0 if type(valid) is float and valid == 0 else valid  # -0.0 equals 0.0 and would have another key

    def values(self, given: Mapping[str, Any], *where: str | int) -> dict[str, Any]:
        """The validated values of the object at the pointer ``where``."""
        return {name: self.value(name, value, pointer(*where, name)) for name, value in given.items()}

    def axis(self, name: str, axis: Any) -> list[Any]:
        """The validated values of an axis. It stops at the first fault of a generator, and after many of a list."""
        where = pointer("axes", name)
        try:
            raw = expand(axis)
        except ValueError as error:
            self._faults.append(Fault(str(error), where))
            return [None]
        if name not in self._adapters:
            return [self.value(name, None, where)]
        before = len(self._faults)
        values = []
        for index, item in enumerate(raw):
            values.append(self.value(name, item, where if isinstance(axis, dict) else pointer("axes", name, index)))
            if len(self._faults) > before + (0 if isinstance(axis, dict) else MAX_FAULTS):
                break
        return values


def _factors(spec: SweepSpec, axes: Mapping[str, Sequence[Any]], faults: list[Fault]) -> list[list[str]]:
    """The axes in order; the axes of one zip group are together, at the place of the first."""
    group_of: dict[str, list[str]] = {}
    sound = not faults  # a refused axis has no length to compare with the others
    for index, group in enumerate(spec.zip):
        where = pointer("zip", index)
        for name in group:
            if name not in axes:
                faults.append(Fault(f"{name!r} is not an axis of this spec{did_you_mean(name, list(axes))}", where))
            elif name in group_of:
                faults.append(Fault(f"{name!r} advances with more than one group", where))
            else:
                group_of[name] = [other for other in group if other in axes]
        lengths = {name: len(axes[name]) for name in group if name in axes}
        if len(group) < 2:
            faults.append(Fault("a zip group names at least two axes", where))
        elif sound and len(set(lengths.values())) > 1:
            sizes = ", ".join(f"{name} has {n}" for name, n in lengths.items())
            faults.append(Fault(f"axes that advance together have one length; {sizes}", where))
    factors: list[list[str]] = []
    for name in axes:
        factor = group_of.get(name, [name])
        if factor not in factors:
            factors.append(factor)
    if not faults:
        for factor in factors:
            _refuse_repeats(spec, axes, factor, faults)
    return factors


def _refuse_repeats(
    spec: SweepSpec, axes: Mapping[str, Sequence[Any]], factor: Sequence[str], faults: list[Fault]
) -> None:
    first: dict[str, int] = {}
    for index, point in enumerate(zip(*(axes[name] for name in factor), strict=True)):
        earlier = first.setdefault(canonical_json(point), index)
        if earlier != index:
            repeated = shown(point[0]) if len(factor) == 1 else f"{' with '.join(factor)} = {shown(point)}"
            detail = f"{repeated} occurs twice on the axis (also at {earlier})"
            faults.append(Fault(detail, spec.axis_pointer(factor[0], index)))
            return
