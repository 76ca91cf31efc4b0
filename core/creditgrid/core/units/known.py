"""The units that a sweep may choose: those of this installation, found by entry point, and those of its code.

A unit that cannot be used (its package raises at import, or its declaration is invalid) does not affect the others. A
spec that names it is refused with the reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from creditgrid.core.errors import PluginError, TaskError
from creditgrid.core.units.dataset import Dataset, unfit_dataset
from creditgrid.core.units.measurement import Measurement, unfit_measurement
from creditgrid.core.units.method import FIT_SETTINGS, Method, is_fitted
from creditgrid.core.units.network import Network
from creditgrid.core.units.rule import Rule
from creditgrid.core.units.unit import Unit, parameters_of, unfit_unit

Found = TypeVar("Found", bound=Unit)

BASES: Mapping[str, type[Unit]] = {
    "methods": Method,
    "rules": Rule,
    "networks": Network,
    "datasets": Dataset,
    "measurements": Measurement,
}
"""The groups of units, which are entry-point groups ``creditgrid.GROUP``, and the base class of each."""
OWN = "creditgrid"
"""The package whose units are loaded first: a package that uses one of their names is the broken one."""


@dataclass(frozen=True)
class Units:
    """Units by group and name; and by group and name why a broken one cannot be used.

    ``brought`` are those of a sweep's code, and ``code`` is the SHA-256 of its files.
    """

    groups: Mapping[str, Mapping[str, type[Unit]]]
    broken: Mapping[tuple[str, str], str] = field(default_factory=dict)
    brought: frozenset[type[Unit]] = frozenset()
    code: str | None = None

    def of(self, group: str) -> Mapping[str, type[Unit]]:
        """The units of a group, by name."""
        return self.groups[group]

    def method(self, name: str) -> type[Method]:
        """A credit method.

        Raises:
            TaskError: it is not known here; so for the others.
        """
        return self._get("methods", name, Method)

    def rule(self, name: str) -> type[Rule]:
        """An update rule."""
        return self._get("rules", name, Rule)

    def network(self, name: str) -> type[Network]:
        """A network."""
        return self._get("networks", name, Network)

    def dataset(self, name: str) -> type[Dataset]:
        """A dataset."""
        return self._get("datasets", name, Dataset)

    def measurement(self, name: str) -> type[Measurement]:
        """A measurement."""
        return self._get("measurements", name, Measurement)

    def _get(self, group: str, name: str, base: type[Found]) -> type[Found]:
        found = self.groups[group].get(name)
        if found is None:
            why = self.broken.get((group, name), "is its package installed here?")
            raise TaskError(f"the {group[:-1]} {name!r} cannot be used here: {why}")
        assert issubclass(found, base)
        return found

    def with_brought(self, units: Iterable[type[Unit]], code: str) -> Units:
        """These units and those of a sweep's code, whose files have the SHA-256 ``code``.

        Raises:
            PluginError: a unit cannot be used beside the others.
        """
        brought = list(units)
        groups = {group: dict(known) for group, known in self.groups.items()}
        for unit in brought:
            group = group_of(unit)
            if unit.name in groups[group]:
                raise PluginError(f"the {group[:-1]} {unit.name!r} exists already: choose another name")
            if why := unfit(unit, groups):
                raise PluginError(why)
            groups[group][unit.name] = unit
        return Units(groups, self.broken, frozenset(brought), code)


def group_of(unit: type[Unit]) -> str:
    """The group of a unit."""
    return next(group for group, base in BASES.items() if issubclass(unit, base))


def unfit(unit: type[Unit], groups: Mapping[str, Mapping[str, type[Unit]]]) -> str | None:
    """Why a unit cannot be used beside others; None if it can."""
    if why := unfit_unit(unit):
        return why
    if issubclass(unit, Method) and is_fitted(unit) and unit.uses_feedback:
        return f"{unit.name} has a fit and uses feedback matrices: one of them"
    if issubclass(unit, Method) and is_fitted(unit) and (taken := sorted(FIT_SETTINGS & unit.model_fields.keys())):
        return f"{unit.name} has a field {taken[0]!r}, which the key of every fit has: rename it"
    if issubclass(unit, Dataset) and (why := unfit_dataset(unit)):
        return why
    if issubclass(unit, Measurement) and (why := unfit_measurement(unit, groups["measurements"].values())):
        return why
    own = parameters_of(unit)
    for group, known in groups.items():
        for other in known.values():
            for name in own.keys() & parameters_of(other).keys():
                if group != group_of(unit):
                    return f"the parameter {name!r} of {unit.name} is one of the {group[:-1]} {other.name}: rename it"
                if (mine := own[name].annotation) != (theirs := parameters_of(other)[name].annotation):
                    return f"the parameter {name!r} is {mine} in {unit.name} and {theirs} in {other.name}: rename it"
    return None


@lru_cache(1)
def installed() -> Units:
    """The units of this installation; loaded once a process."""
    groups: dict[str, dict[str, type[Unit]]] = {group: {} for group in BASES}
    broken: dict[tuple[str, str], str] = {}
    for group in BASES:
        points = entry_points(group=f"creditgrid.{group}")
        for point in sorted(points, key=lambda point: (package_of(point) != OWN, point.name, point.value)):
            try:
                groups[group][point.name] = _load(point, group, groups)
            except PluginError as error:
                broken.setdefault((group, point.name), str(error))
    return Units(groups, broken)


def package_of(point: EntryPoint) -> str:
    """The package that registers an entry point."""
    return point.dist.name if point.dist is not None else point.value


def loaded(point: EntryPoint) -> Any:
    """What an entry point registers.

    Raises:
        PluginError: its package raises when it is imported.
    """
    try:
        return point.load()
    except (Exception, SystemExit) as error:  # a plugin may raise anything; the error names it, and the others load
        raise PluginError(
            f"package {package_of(point)} raised {type(error).__name__} when {point.value} was imported: {error}"
        ) from error


def _load(point: EntryPoint, group: str, groups: Mapping[str, Mapping[str, type[Unit]]]) -> type[Unit]:
    package, unit = package_of(point), loaded(point)
    base = BASES[group]
    if not isinstance(unit, type) or not issubclass(unit, base):
        raise PluginError(f"{point.value} of package {package} is not a subclass of {base.__name__}")
    if why := unfit(unit, groups):
        raise PluginError(f"package {package}: {why}")
    if unit.name != point.name:
        raise PluginError(f"package {package} registers {point.name!r} and declares {unit.name!r}: use one name")
    if unit.name in groups[group]:
        raise PluginError(f"package {package} registers {point.name!r}, which another package has registered")
    return unit
