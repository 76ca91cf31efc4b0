"""The grid: a validated spec, expanded once into cells.

A cell is a complete, concrete set of parameters; no placeholder reaches a task. Every cell is checked for values that
make no sense together.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from creditgrid.core.datasets import DatasetRef
from creditgrid.core.errors import Fault, PluginError, SpecError
from creditgrid.core.experiment import Experiment, Params
from creditgrid.core.spec.faults import MAX_FAULTS, Faults, pointer
from creditgrid.core.spec.model import SweepSpec
from creditgrid.core.spec.rules import Rules, hashable

MAX_SEARCHED = 10_000
"""Cells that are searched for further faults after the first."""


@dataclass(frozen=True)
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
        of_valid, conflicts = self.experiment.params.of_valid, self._conflicts
        settle, owned = self.experiment.params.settle, self.experiment.params.owned
        on_axes = [name for name in self.axes if name in owned]
        faults = Faults()
        blamed: set[tuple[str | int, ...]] = set()
        searched = 0  # cells after the first fault
        count = 0
        for included, values in itertools.chain(self._product(), self._extra()):
            given = on_axes if included is None else [name for name in self.include[included] if name in owned]
            unsettled = settle(values, given)
            params = of_valid(values)
            found = unsettled or conflicts(params, datasets[values["dataset"]] if datasets else None)
            for name, detail in found:
                where = self._conflict_place(name, values, included)
                if where not in blamed:
                    blamed.add(where)
                    faults.add(where, detail)
            if faults.first:
                searched += 1
                if len(faults) > MAX_FAULTS or searched > MAX_SEARCHED:
                    break
                continue
            count += 1
            yield params
        faults.refuse()
        if count == 0:
            raise SpecError([Fault("the spec leaves no cells: every one is excluded", "/exclude")])

    def pointer_to(self, name: str, value: Any) -> str:
        """The first place where the spec gives the parameter ``name`` this value, or could have given it."""
        where = self._places(name).get(hashable(value))
        return self.spec.fixed_pointer() if where is None else pointer(*where)

    def _product(self) -> Iterator[tuple[int | None, dict[str, Any]]]:
        """The cells of the axes that no rule leaves out."""
        if self._only_included:
            return
        base, rules = self._base, self._rules
        if not self.factors:
            if not rules.any:
                yield None, dict(base)
            return
        *outer, inner = self.factors
        names = [name for factor in outer for name in factor]
        for point in itertools.product(*(list(self._points(factor)) for factor in outer)):
            values = list(itertools.chain.from_iterable(point))
            prefix = base | dict(zip(names, values, strict=True))
            left_out = rules.matching(names, values)
            for last in self._points(inner):
                if not (left_out and left_out & rules.matching(inner, last)):
                    yield None, prefix | dict(zip(inner, last, strict=True))

    def _extra(self) -> Iterator[tuple[int | None, dict[str, Any]]]:
        """The included cells that are new: neither of the axes, nor of an earlier entry."""
        if not self.include:
            return
        points = [{tuple(map(hashable, point)) for point in self._points(factor)} for factor in self.factors]
        seen: set[tuple[Any, ...]] = set()
        for index, entry in enumerate(self.include):
            values = self._base | entry
            key = tuple(hashable(values[name]) for name in self.experiment.params.model_fields)
            if key not in seen and not self._in_product(values, points):
                seen.add(key)
                yield index, values

    def _in_product(self, values: Mapping[str, Any], points: Sequence[set[tuple[Any, ...]]]) -> bool:
        if self._only_included:
            return False
        on_axes = (
            tuple(hashable(values[n]) for n in f) in known for f, known in zip(self.factors, points, strict=True)
        )
        rest = all(values[name] == value for name, value in self._base.items() if name not in self.axes)
        return all(on_axes) and rest and not self._rules.matching(self.axes, (values[name] for name in self.axes))

    @property
    def _only_included(self) -> bool:
        return bool(self.include) and not self.axes

    @cached_property
    def _base(self) -> dict[str, Any]:
        """The values of a cell that no axis gives: defaults and fixed values."""
        fields = self.experiment.params.model_fields.items()
        defaults = {n: field.get_default(call_default_factory=True) for n, field in fields if not field.is_required()}
        return defaults | self.fixed

    @cached_property
    def _rules(self) -> Rules:
        return Rules(self.exclude, self._base, self.axes)

    def _points(self, factor: Sequence[str]) -> Iterator[tuple[Any, ...]]:
        return zip(*(self.axes[name] for name in factor), strict=True)

    def _conflicts(self, params: Params, dataset: DatasetRef | None) -> list[tuple[str, str]]:
        try:
            return list(params.conflicts(dataset))
        except Exception as error:
            raise PluginError(f"{self.experiment.name}: conflicts() raised {type(error).__name__}: {error}") from error

    def _conflict_place(self, name: str, values: Mapping[str, Any], included: int | None) -> tuple[str | int, ...]:
        if included is not None and name in self.include[included]:
            return "include", included, name
        if name in self.fixed:
            return "fixed", name
        if included is not None:  # two defaults, or a default and another of the entry's values
            return "include", included
        if name in self.axes:
            return self._places(name)[hashable(values[name])]
        return self.spec.fixed_place()

    def _places(self, name: str) -> Mapping[Any, tuple[str | int, ...]]:
        """Where the spec first gives each value of a parameter."""
        if name not in self._found_places:
            found: dict[Any, tuple[str | int, ...]] = {}
            if name in self.fixed:
                found[hashable(self.fixed[name])] = ("fixed", name)
            for index, value in enumerate(self.axes.get(name, ())):
                found.setdefault(hashable(value), self.spec.axis_place(name, index))
            for index, entry in enumerate(self.include):
                if name in entry:
                    found.setdefault(hashable(entry[name]), ("include", index, name))
            self._found_places[name] = found
        return self._found_places[name]

    @cached_property
    def _found_places(self) -> dict[str, Mapping[Any, tuple[str | int, ...]]]:
        return {}
