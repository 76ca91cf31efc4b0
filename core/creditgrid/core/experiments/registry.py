"""Every experiment and task kind of this installation, found by entry point.

An experiment that cannot be used (its package raises at import, or its declaration is invalid) does not affect the
others. They load; a request for the broken one gets an error that says what is wrong with it.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from creditgrid.core.datasets import DatasetRef
from creditgrid.core.errors import Fault, PluginError, SpecError, did_you_mean
from creditgrid.core.experiment import Experiment, KnownMeasurement, Params
from creditgrid.core.experiments.stages import STAGES
from creditgrid.core.experiments.stages import with_units as stages_with
from creditgrid.core.rows import RESERVED, columns
from creditgrid.core.task import TaskKind
from creditgrid.core.units.choice import ChoosingParams, composed
from creditgrid.core.units.dataset import reference
from creditgrid.core.units.known import OWN, Units, installed, loaded, package_of
from creditgrid.core.units.method import Method, is_fitted

ENTRY_POINTS = "creditgrid.experiments"


@dataclass(frozen=True)
class Registry:
    """Experiments by name, task kinds by name, by name why a broken experiment cannot be used, and the units."""

    experiments: dict[str, Experiment]
    kinds: dict[str, TaskKind]
    broken: dict[str, str]
    units: Units = field(default_factory=installed)

    def experiment(self, name: str, where: str = "/experiment") -> Experiment:
        """The experiment of this name.

        Raises:
            SpecError: pointing at ``where``, for a name that is unknown or broken.
        """
        if name in self.experiments:
            return self.experiments[name]
        if name in self.broken:
            raise SpecError([Fault(f"the experiment {name!r} cannot be used: {self.broken[name]}", where)])
        known = sorted(self.experiments)
        hint = did_you_mean(name, known)
        raise SpecError([Fault(f"there is no experiment {name!r}{hint}; there are {', '.join(known)}", where)])

    def kinds_of(self, experiment: Experiment) -> dict[str, TaskKind]:
        """The task kinds that a sweep of ``experiment`` may run."""
        stages = (self.kinds[kind.name] for kind in STAGES)
        return {kind.name: kind for kind in (*stages, *experiment.kinds, experiment.measure)}


@lru_cache(1)
def registry() -> Registry:
    """All experiments of this installation, with its units; loaded once a process."""
    return registry_with(installed())


def registry_with(units: Units) -> Registry:
    """All experiments of this installation, with these units."""
    found = Registry({}, {kind.name: kind for kind in stages_with(units)}, {}, units)
    points = entry_points(group=ENTRY_POINTS)
    for point in sorted(points, key=lambda point: (package_of(point) != OWN, point.name, point.value)):
        try:
            _add(found, point)
        except PluginError as error:
            found.broken.setdefault(point.name, str(error))
    return found


def with_units(experiment: Experiment, units: Units) -> Experiment:
    """The experiment with the units that its cells may choose, and their parameters.

    Raises:
        TypeError: a unit's parameter has the name of one of the experiment's own.
    """
    params = composed(experiment.params, units)
    summarise = experiment.summarise
    if "params" in inspect.signature(summarise).parameters:
        summarise = partial(summarise, params=params)
    measure = experiment.measure
    if measure.cost_by is not None and issubclass(params, ChoosingParams):
        measure = replace(measure, cost_by=(*measure.cost_by, *_costly(params)))
    cost: Any = measure.cost
    if cost is not None and "units" in inspect.signature(cost).parameters:
        measure = replace(measure, cost=partial(cost, units=units))
    return replace(
        experiment,
        params=params,
        summarise=summarise,
        measure=measure,
        datasets=_datasets(units) if "dataset" in params.model_fields else {},
        measurements=_measurements(units) if experiment.measurable is not None else {},
    )


def _costly(params: type[ChoosingParams]) -> Iterator[str]:
    """The choices that say what a cell costs, and the parameters of their units. A fit's key holds those of its method,
    and cells with other parents are distinct already; so are those with other networks."""
    for name, chosen in params.choices.items():
        if name != "network":
            yield name
            fits = {unit for unit, cls in chosen.units.items() if issubclass(cls, Method) and is_fitted(cls)}
            yield from sorted({own for unit, names in chosen.own.items() if unit not in fits for own in names})


def _datasets(units: Units) -> Mapping[str, DatasetRef]:
    found = ((unit.name, unit in units.brought, units.dataset(unit.name)) for unit in units.of("datasets").values())
    return {name: reference(unit, units.code if brought else None) for name, brought, unit in found}


def _measurements(units: Units) -> Mapping[str, KnownMeasurement]:
    """By name. The content of brought code is in the keys, so its version is always 1."""
    found = [units.measurement(name) for name in units.of("measurements")]
    return {
        unit.name: KnownMeasurement(1 if unit in units.brought else unit.version, unit.columns, unit.after_step)
        for unit in found
    }


def usable(experiment: Experiment, found: Registry) -> Experiment:
    """The experiment with the units that exist, if it can be used beside the others.

    Raises:
        PluginError: it cannot; the text says why.
    """
    if why := _unfit(experiment, found):
        raise PluginError(why)
    try:
        experiment = with_units(experiment, found.units)
    except TypeError as error:
        raise PluginError(str(error)) from error
    if why := _unfit_columns(experiment, found) or _unfit_charts(experiment):
        raise PluginError(why)
    return experiment


def _add(found: Registry, point: EntryPoint) -> None:
    package, experiment = package_of(point), loaded(point)
    if not isinstance(experiment, Experiment):
        raise PluginError(f"{point.value} of package {package} is a {type(experiment).__name__}, not an Experiment")
    if experiment.name != point.name:
        raise PluginError(f"package {package} registers {point.name!r} and declares {experiment.name!r}: use one name")
    if experiment.name in found.experiments:
        raise PluginError(f"package {package} registers {point.name!r}, which another package has registered")
    try:
        experiment = usable(experiment, found)
    except PluginError as error:
        raise PluginError(f"package {package}: {error}") from error
    found.experiments[experiment.name] = experiment
    found.kinds.update({kind.name: kind for kind in (*experiment.kinds, experiment.measure)})


def _unfit(experiment: Experiment, found: Registry) -> str | None:
    """Why the experiment cannot be used beside the others; None if it can."""
    if not issubclass(experiment.params, Params):
        return f"{experiment.params.__name__} is not a Params"
    decorators = experiment.params.__pydantic_decorators__
    if decorators.field_validators or decorators.validators or decorators.model_validators:
        return f"{experiment.params.__name__} has validators, which are not run for single values: use conflicts()"
    return _unfit_kinds(experiment, found)


def _unfit_columns(experiment: Experiment, found: Registry) -> str | None:
    fields = set(experiment.params.model_fields)
    for name in (*fields, *experiment.columns):
        if not re.fullmatch(r"[a-z][a-z0-9_]{0,62}", name):
            return f"the column {name!r} is not lower_case_with_underscores"
        if name in RESERVED:
            return f"the column {name!r} is reserved for the provenance of rows"
    if twice := sorted(fields & set(experiment.columns)):
        return f"{', '.join(twice)} is both a parameter and a measured column"
    try:
        types = columns(experiment)
    except TypeError as error:
        return str(error)
    for other in found.experiments.values():  # one table holds the rows of all experiments, and a column has one type
        for name, column in columns(other).items():
            if types.get(name, column) != column:
                return f"the column {name!r} is {types[name]} here and {column} in {other.name}: use another name"
    return None


def _unfit_kinds(experiment: Experiment, found: Registry) -> str | None:
    kinds = (*experiment.kinds, experiment.measure)
    if len({kind.name for kind in kinds}) < len(kinds):
        return f"two of its task kinds have one name: {', '.join(sorted(kind.name for kind in kinds))}"
    if experiment.measure.name in found.kinds:
        return f"the task kind {experiment.measure.name!r} is taken: an experiment measures with its own kind"
    measures = {other.measure.name for other in found.experiments.values()}
    for kind in kinds:
        if kind.name in measures or found.kinds.get(kind.name, kind) is not kind:
            return f"another package has a task kind {kind.name!r}"
    return None


def _unfit_charts(experiment: Experiment) -> str | None:
    names = [chart.name for chart in experiment.charts]
    for chart in experiment.charts:
        if names.count(chart.name) > 1 or not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,62}", chart.name):
            return f"the chart {chart.name!r} needs a name of its own in lower-case letters, digits and dashes"
        shown = [*chart.x.columns, *chart.series, *(column for axis in chart.measures for column in axis.columns)]
        for column in shown:
            if column not in experiment.columns and column not in experiment.params.model_fields:
                return f"the chart {chart.name!r} shows {column!r}, which is neither a parameter nor a measured column"
    return None
