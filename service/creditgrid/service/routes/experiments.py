"""What can be swept."""

from __future__ import annotations

from fastapi import APIRouter

from creditgrid.core.registry import registry
from creditgrid.core.wire import ColumnView, ExperimentView, Page
from creditgrid.service.auth import PROTECTED

router = APIRouter(prefix=PROTECTED, tags=["experiments"])


@router.get("/experiments")
def experiments() -> Page[ExperimentView]:
    """Every experiment of this installation, with its parameters as JSON Schema; broken ones say what is wrong."""
    known = registry()
    views = [
        ExperimentView(
            name=experiment.name,
            title=experiment.title,
            parameters=experiment.params.model_json_schema(),
            columns={n: ColumnView(type=c.type, description=c.description) for n, c in experiment.columns.items()},
            kinds=list(known.kinds_of(experiment)),
        )
        for experiment in known.experiments.values()
    ]
    views += [
        ExperimentView(name=name, title=name, parameters={}, columns={}, kinds=[], problem=reason)
        for name, reason in known.broken.items()
    ]
    return Page(items=sorted(views, key=lambda view: view.name))
