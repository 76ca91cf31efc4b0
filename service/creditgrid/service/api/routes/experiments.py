"""What can be swept."""

from __future__ import annotations

from fastapi import APIRouter

from creditgrid.core.errors import NotFoundError
from creditgrid.core.experiment import Axis, Chart
from creditgrid.core.experiments.registry import Registry, registry
from creditgrid.core.wire import AxisView, ChartView, ColumnView, ExperimentView, Page
from creditgrid.service.api.auth import PROTECTED

router = APIRouter(prefix=PROTECTED, tags=["experiments"])


@router.get("/experiments")
def experiments() -> Page[ExperimentView]:
    """Every experiment of this installation, with its parameters as JSON Schema; broken ones say what is wrong."""
    known = registry()
    return Page(items=[_view(known, name) for name in sorted({*known.experiments, *known.broken})])


@router.get("/experiments/{name}")
def experiment(name: str) -> ExperimentView:
    """One experiment."""
    known = registry()
    if name not in known.experiments and name not in known.broken:
        raise NotFoundError(f"there is no experiment {name!r}; there are {', '.join(sorted(known.experiments))}")
    return _view(known, name)


def _view(known: Registry, name: str) -> ExperimentView:
    if name not in known.experiments:
        return ExperimentView(name=name, title=name, parameters={}, columns={}, kinds=[], problem=known.broken[name])
    found = known.experiments[name]
    return ExperimentView(
        name=found.name,
        title=found.title,
        parameters=found.params.model_json_schema(),
        columns={n: ColumnView(type=c.type, description=c.description) for n, c in found.columns.items()},
        kinds=list(known.kinds_of(found)),
        charts=[_chart(chart) for chart in found.charts],
    )


def _chart(chart: Chart) -> ChartView:
    return ChartView(
        name=chart.name,
        title=chart.title,
        mark=chart.mark,
        x=_axis(chart.x),
        measures=[_axis(measure) for measure in chart.measures],
        series=list(chart.series),
    )


def _axis(axis: Axis) -> AxisView:
    return AxisView(columns=list(axis.columns), title=axis.title, scale=axis.scale)
