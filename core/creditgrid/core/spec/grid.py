"""The grid: a validated spec, expanded once into cells.

A cell is a complete, concrete set of parameters; no placeholder reaches a task. Every cell is checked for values that
make no sense together.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from creditgrid.core.datasets import DatasetRef
from creditgrid.core.errors import Fault, PluginError, SpecError
from creditgrid.core.experiment import Experiment, Params
from creditgrid.core.fingerprint import canonical_json
from creditgrid.core.spec.faults import MAX_FAULTS, bounded, pointer
from creditgrid.core.spec.model import SweepSpec


@dataclass(frozen=True, slots=True)
class Grid:
    """A validated spec: every value checked alone, the number of cells known, nothing expanded yet."""

    spec: SweepSpec
    experiment: Experiment
    fixed: dict[str, Any]
    axes: Mapping[str, Sequence[Any]]
    factors: Sequence[Sequence[str]]  # axes that advance together, in the order of the spec
    exclude: Sequence[Mapping[str, Any]]
    include: Sequence[dict[str, Any]]
    earlier: Sequence[Grid] = ()  # the earlier forms of an extended sweep, whose cells come first

    def size(self) -> int:
        """The most cells that the grid can have; exclude rules and repeated entries leave fewer."""
        return math.prod(len(self.axes[factor[0]]) for factor in self.factors) + len(self.include)

    def cells(self, datasets: Mapping[str, DatasetRef] | None = None) -> Iterator[Params]:
        """Each cell's parameters once, in the order of the axes (the last one fastest), then the included cells.

        An extended grid yields the cells of its earlier forms, then all its own cells: the old ones again, and the new.

        Args:
            datasets: the grid's datasets, resolved; without them, cells are not checked against their datasets.

        Raises:
            SpecError: for cells whose values make no sense together.
            PluginError: when the experiment's own code raises.
        """
        for grid in self.earlier:
            yield from grid.cells(datasets)
        faults: dict[str, Fault] = {}
        points = [set(self._points(factor)) for factor in self.factors] if self.include else []
        seen_included: set[str] = set()
        count = 0
        base = self._base()
        extra = ((index, base | entry) for index, entry in enumerate(self.include))
        for included, values in itertools.chain(self._product(), extra):
            params = self.experiment.params.of_valid(values)
            for blamed, detail in self._conflicts(params, datasets[values["dataset"]] if datasets else None):
                fault = Fault(detail, self._conflict_pointer(blamed, values, included))
                faults.setdefault(fault.pointer, fault)
            if faults:
                if len(faults) > MAX_FAULTS:
                    break
                continue
            if included is not None:  # not a new cell if the grid or an earlier entry has it already
                text = canonical_json(values)
                if text in seen_included or self._in_product(values, points):
                    continue
                seen_included.add(text)
            count += 1
            yield params
        if faults:
            raise SpecError(bounded(list(faults.values())))
        if count == 0:
            raise SpecError([Fault("the spec leaves no cells: every one is excluded", "/exclude")])

    def pointer_to(self, name: str, value: Any) -> str:
        """The first place where the spec gives the parameter ``name`` this value, or could have given it."""
        if self.fixed.get(name) == value:
            return pointer("fixed", name)
        if value in self.axes.get(name, ()):
            return self.spec.axis_pointer(name, self.axes[name].index(value))
        for index, entry in enumerate(self.include):
            if entry.get(name) == value:
                return pointer("include", index, name)
        return self.spec.fixed_pointer()

    def _product(self) -> Iterator[tuple[int | None, dict[str, Any]]]:
        if self._only_included():
            return
        base = self._base()
        columns = [list(self._points(factor)) for factor in self.factors]
        names = [name for factor in self.factors for name in factor]
        for point in itertools.product(*columns):
            values = base | dict(zip(names, itertools.chain.from_iterable(point), strict=True))
            if not self._excluded(values):
                yield None, values

    def _in_product(self, values: Mapping[str, Any], points: Sequence[set[tuple[Any, ...]]]) -> bool:
        if self._only_included():
            return False
        on_axes = (tuple(values[n] for n in f) in known for f, known in zip(self.factors, points, strict=True))
        rest = all(values[name] == value for name, value in self._base().items() if name not in self.axes)
        return all(on_axes) and rest and not self._excluded(values)

    def _only_included(self) -> bool:
        return bool(self.include) and not self.axes

    def _base(self) -> dict[str, Any]:
        """The values of a cell that no axis gives: defaults and fixed values."""
        fields = self.experiment.params.model_fields.items()
        defaults = {n: field.get_default(call_default_factory=True) for n, field in fields if not field.is_required()}
        return defaults | self.fixed

    def _points(self, factor: Sequence[str]) -> Iterator[tuple[Any, ...]]:
        return zip(*(self.axes[name] for name in factor), strict=True)

    def _excluded(self, values: Mapping[str, Any]) -> bool:
        return any(all(values[name] == value for name, value in rule.items()) for rule in self.exclude)

    def _conflicts(self, params: Params, dataset: DatasetRef | None) -> list[tuple[str, str]]:
        try:
            return list(params.conflicts(dataset))
        except Exception as error:
            raise PluginError(f"{self.experiment.name}: conflicts() raised {type(error).__name__}: {error}") from error

    def _conflict_pointer(self, name: str, values: Mapping[str, Any], included: int | None) -> str:
        if included is not None and name in self.include[included]:
            return pointer("include", included, name)
        if name in self.fixed:
            return pointer("fixed", name)
        if included is not None:  # two defaults, or a default and another of the entry's values
            return pointer("include", included)
        if name in self.axes:
            return self.spec.axis_pointer(name, self.axes[name].index(values[name]))
        return self.spec.fixed_pointer()
