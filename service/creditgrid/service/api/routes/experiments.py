"""The installed experiments."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from creditgrid.core.errors import NotFoundError
from creditgrid.core.experiments.registry import Registry, registry
from creditgrid.core.wire import ExperimentView, Page
from creditgrid.service.api.auth import PROTECTED
from creditgrid.service.api.dependencies import ServicesDep

router = APIRouter(prefix=PROTECTED, tags=["experiments"])


@router.get("/experiments")
def experiments() -> Page[ExperimentView]:
    """Every installed experiment, with its parameters as JSON Schema; a broken one has a `problem`."""
    known = registry()
    return Page(items=[_view(known, name) for name in sorted({*known.experiments, *known.broken})])


@router.get("/experiments/{name}")
def experiment(
    services: ServicesDep,
    name: str,
    code: Annotated[
        str | None, Query(max_length=64, description="SHA-256 of code: with its units and their parameters.")
    ] = None,
) -> ExperimentView:
    """One experiment."""
    known = registry() if code is None else services.codes.registry(code)
    if name not in known.experiments and name not in known.broken:
        names = ", ".join(sorted(known.experiments))
        raise NotFoundError(f"there is no experiment {name!r}; the experiments are {names}")
    return _view(known, name)


def _view(known: Registry, name: str) -> ExperimentView:
    if name not in known.experiments:
        return ExperimentView(name=name, title=name, parameters={}, columns={}, kinds=[], problem=known.broken[name])
    found = known.experiments[name]
    return ExperimentView(
        name=found.name,
        title=found.title,
        parameters=found.params.model_json_schema(),
        columns=dict(found.columns),
        kinds=list(known.kinds_of(found)),
        charts=list(found.charts),
    )
