"""The whole suite: every check of a unit, of many, or of an experiment."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeAlias

from creditgrid.core.contract import datasets, declaration, experiments, measurements, methods, networks, rules
from creditgrid.core.contract.checks import Checks, Finding, Result, results
from creditgrid.core.experiment import Experiment
from creditgrid.core.units.known import group_of
from creditgrid.core.units.unit import Unit

Starting: TypeAlias = Callable[[str], None]

SUITES: Mapping[str, tuple[Callable[[Any], Any], Checks[Any]]] = {
    "methods": (methods.FittedMethod, methods.CHECKS),
    "rules": (rules.AppliedRule, rules.CHECKS),
    "networks": (networks.BuiltNetwork, networks.CHECKS),
    "datasets": (datasets.LoadedDataset, datasets.CHECKS),
    "measurements": (measurements.AppliedMeasurement, measurements.CHECKS),
}
"""By group what its checks look at, and the checks."""


def check_unit(unit: type[Unit], *, quick: bool, starting: Starting = lambda _: None) -> Iterator[Result]:
    """The results of all checks of a unit, or of the quick ones; one that is not declared well is not used."""
    broken: str | None = None
    for result in results(declaration.Declared(unit), declaration.CHECKS, quick=quick, starting=starting):
        broken = broken or (result.check if result.findings else None)
        yield result
    subject, checks = SUITES[group_of(unit)]
    if broken is None:
        yield from results(subject(unit), checks, quick=quick, starting=starting)
        return
    for check in checks:
        if check.quick or not quick:
            yield Result(unit.__name__, group_of(unit), check.name, 0.0, skipped=f"because of: {broken}")


def check_experiment(experiment: Experiment, *, quick: bool, starting: Starting = lambda _: None) -> Iterator[Result]:
    """The results of all checks of an experiment, or of the quick ones."""
    return results(experiments.TriedExperiment(experiment), experiments.CHECKS, quick=quick, starting=starting)


def check_units(units: Iterable[type[Unit]], quick: bool = True) -> list[Finding]:
    """What is wrong with units, by the quick checks or by all."""
    found = (check_unit(unit, quick=quick) for unit in units)
    return [finding for result in itertools.chain.from_iterable(found) for finding in result.findings]
