"""The resources and timeouts of calls, from the spec of their sweep and from their kind."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import TypeAlias

from creditgrid.core.experiments.registry import registry
from creditgrid.core.spec.model import MEASURE, ResourceSpec, SweepSpec
from creditgrid.core.task import Resources, TaskKind

Asked: TypeAlias = Mapping[str, ResourceSpec]
"""The resources that a spec asks for, by task kind."""


@lru_cache(256)
def parsed(spec: str) -> SweepSpec:
    """The spec, from the text in the ledger."""
    return SweepSpec.model_validate(json.loads(spec))


def _name(kind: TaskKind) -> str:
    """The name of a task kind in specs."""
    measured = any(experiment.measure is kind for experiment in registry().experiments.values())
    return MEASURE if measured else kind.name


def resources(kind: TaskKind, spec: SweepSpec | None) -> Resources:
    """The resources of a call of this kind: the spec's, or the kind's where the spec sets none."""
    return asked_resources(kind, {} if spec is None else spec.resources)


def asked_resources(kind: TaskKind, found: Asked) -> Resources:
    """As ``resources``, from the resources of a spec alone."""
    asked = found.get(_name(kind))
    return Resources(
        kind.resources.cpu if asked is None or asked.cpu is None else asked.cpu,
        kind.resources.gpu if asked is None or asked.gpu is None else asked.gpu,
    )


@lru_cache(256)
def parsed_resources(text: str | None) -> Asked:
    """The resources of a spec, from their text in the ledger."""
    return {name: ResourceSpec.model_validate(asked) for name, asked in json.loads(text or "{}").items()}


def timeout_s(kind: TaskKind, spec: SweepSpec) -> float | None:
    """How long a call of this kind may take: the spec's limit, or the kind's where the spec sets none."""
    return spec.timeout_s.get(_name(kind), kind.timeout_s)
