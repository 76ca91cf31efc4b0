"""What a sweep's spec says of its calls: with what they run, and for how long."""

from __future__ import annotations

import json
from functools import lru_cache

from creditgrid.core.experiments.registry import registry
from creditgrid.core.spec.model import MEASURE, SweepSpec
from creditgrid.core.task import Resources, TaskKind


@lru_cache(256)
def parsed(spec: str) -> SweepSpec:
    """A spec that was submitted, from the ledger's text."""
    return SweepSpec.model_validate(json.loads(spec))


def _name(kind: TaskKind) -> str:
    """What a spec calls a task kind."""
    measured = any(experiment.measure is kind for experiment in registry().experiments.values())
    return MEASURE if measured else kind.name


def resources(kind: TaskKind, spec: SweepSpec | None) -> Resources:
    """What a call of this kind is given: what the spec says, or else the kind."""
    asked = None if spec is None else spec.resources.get(_name(kind))
    return Resources(
        kind.resources.cpu if asked is None or asked.cpu is None else asked.cpu,
        kind.resources.gpu if asked is None or asked.gpu is None else asked.gpu,
    )


def timeout_s(kind: TaskKind, spec: SweepSpec) -> float | None:
    """How long a call of this kind may take: what the spec says, or else the kind."""
    return spec.timeout_s.get(_name(kind), kind.timeout_s)
