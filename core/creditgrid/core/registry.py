"""Every experiment and task kind that this installation knows, found by entry point.

An experiment that cannot be used (its package raises at import, or what it declares is unfit) costs itself alone:
the others load, and asking for it says what is wrong with it.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points

from creditgrid.core.errors import Fault, PluginError, SpecError
from creditgrid.core.experiment import Experiment
from creditgrid.core.rows import RESERVED
from creditgrid.core.stages import STAGES
from creditgrid.core.task import TaskKind

ENTRY_POINTS = "creditgrid.experiments"


@dataclass(frozen=True)
class Registry:
    """What was found: experiments by name, task kinds by name, and for what could not be used the reason."""

    experiments: dict[str, Experiment]
    kinds: dict[str, TaskKind]
    broken: dict[str, str]

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
        close = difflib.get_close_matches(name, known, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise SpecError([Fault(f"there is no experiment {name!r}{hint}; there are {', '.join(known)}", where)])

    def kinds_of(self, experiment: Experiment) -> dict[str, TaskKind]:
        """The task kinds that a sweep of ``experiment`` may run."""
        return {kind.name: kind for kind in (*STAGES, *experiment.kinds, experiment.measure)}


@lru_cache(1)
def registry() -> Registry:
    """All experiments of this installation; loaded once a process."""
    found = Registry({}, {kind.name: kind for kind in STAGES}, {})
    for point in sorted(entry_points(group=ENTRY_POINTS), key=lambda point: (point.name, point.value)):
        try:
            _add(found, point)
        except PluginError as error:
            found.broken.setdefault(point.name, str(error))
    return found


def _add(found: Registry, point: EntryPoint) -> None:
    package = point.dist.name if point.dist is not None else point.value
    try:
        experiment = point.load()
    except Exception as error:  # a plugin may raise anything at import; the culprit is named and the rest goes on
        raise PluginError(f"package {package} raised {type(error).__name__} when {point.value} was imported: {error}") from error
    if not isinstance(experiment, Experiment):
        raise PluginError(f"{point.value} of package {package} is a {type(experiment).__name__}, not an Experiment")
    if experiment.name != point.name:
        raise PluginError(f"package {package} registers {point.name!r} and declares {experiment.name!r}: use one name")
    if experiment.name in found.experiments:
        raise PluginError(f"package {package} registers {point.name!r}, which another package has registered")
    fields = set(experiment.params.model_fields)
    for name in (*fields, *experiment.columns):
        if not re.fullmatch(r"[a-z][a-z0-9_]{0,62}", name):
            raise PluginError(f"package {package}: the column {name!r} is not lower_case_with_underscores")
        if name in RESERVED:
            raise PluginError(f"package {package}: the column {name!r} is taken by every experiment's provenance")
    if twice := sorted(fields & set(experiment.columns)):
        raise PluginError(f"package {package}: {', '.join(twice)} is both a parameter and a measured column")
    for kind in (*experiment.kinds, experiment.measure):
        if found.kinds.get(kind.name, kind) is not kind:
            raise PluginError(f"package {package}: another package has a task kind {kind.name!r}")
    found.experiments[experiment.name] = experiment
    found.kinds.update({kind.name: kind for kind in (*experiment.kinds, experiment.measure)})
