"""Charts of a sweep, as its experiment declares them: drawn with Altair, written as PNG, SVG, PDF or offline HTML.

The service's view of an experiment is enough, so the client draws a plugin's charts without the plugin.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from creditgrid.client.errors import BadSetting, PackageMissing
from creditgrid.client.plots import ImageFormat
from creditgrid.client.plots.curves import NAME as CURVES
from creditgrid.client.plots.curves import page as curves_page
from creditgrid.client.plots.labels import label_of
from creditgrid.client.plots.layout import compose
from creditgrid.client.plots.points import picture
from creditgrid.core.experiment import Chart
from creditgrid.core.files import atomic_file
from creditgrid.core.wire import ExperimentView

if TYPE_CHECKING:
    import altair as alt

PIXELS = 2.0
"""A PNG's pixels per pixel of the chart, so that text is sharp in print and on fine screens."""


def charts(
    view: ExperimentView,
    rows: Sequence[Mapping[str, Any]],
    *,
    name: str | None = None,
    fix: Mapping[str, Any] | None = None,
) -> dict[str, alt.VConcatChart]:
    """The charts that ``view`` declares, by name, drawn from the rows of a sweep.

    A point is the mean over the seeds with its 95 % interval (Student t). Parameters that vary and are not in the chart
    have panels. Charts whose columns are all null are left out.

    Args:
        name: of the only chart to draw; default: all charts.
        fix: parameter or column → show only rows with this value, given as itself or as text.

    Raises:
        PackageMissing: if Altair or vl-convert is not installed.
        BadSetting: if there is nothing to draw, no such chart or value, or more panels than a page holds.
    """
    _require_packages()
    wanted = _wanted(view, name)
    if not rows:
        raise BadSetting("there are no rows to draw yet")
    shown = _fixed(rows, fix or {})
    pictures = [picture(chart, view.parameters.get("properties", {}), shown) for chart in wanted]
    drawn = {one.chart.name: compose(one) for one in pictures if one.panels}
    if not drawn:
        reasons = sorted({note for one in pictures for note in one.notes} or {"every value is null"})
        raise BadSetting(f"there is nothing to draw in {', '.join(one.name for one in wanted)}: {'; '.join(reasons)}")
    return drawn


def all_charts(
    view: ExperimentView,
    rows: Callable[[], Sequence[Mapping[str, Any]]],
    curves: Callable[[], Sequence[Mapping[str, Any]]],
    *,
    name: str | None = None,
    fix: Mapping[str, Any] | None = None,
) -> dict[str, alt.VConcatChart]:
    """The charts of ``charts``, and that of the curves; raises what ``charts`` raises if there is neither."""
    _require_packages()
    declared = any(chart.name == CURVES for chart in view.charts)
    page = None
    if name in (None, CURVES) and not declared:
        found = curves()
        known = {column: value for column, value in (fix or {}).items() if found and column in found[0]}
        page = curves_page([row for row in found if all(_is(row[name], value) for name, value in known.items())])
    drawn = {} if page is None else {CURVES: page}
    if name == CURVES and not declared:
        if page is None:
            raise BadSetting("there are no curves to draw yet")
        return drawn
    try:
        return charts(view, rows(), name=name, fix=fix) | drawn
    except BadSetting:
        if page is None or fix:
            raise
        return drawn


def write(chart: alt.VConcatChart, path: Path, format: ImageFormat) -> Path:
    """Write a chart to a file, which appears when it is complete.

    HTML has everything in one file, and needs no network.

    Raises:
        BadSetting: for an unknown format.
        PackageMissing: if Altair or vl-convert is not installed.
    """
    check_format(format)
    _require_packages()
    with atomic_file(path) as file:
        chart.save(file.name, format, scale_factor=PIXELS if format == "png" else 1.0, inline=format == "html")
    return path


def check_format(format: str) -> None:
    """Refuse an unknown image format."""
    if format not in get_args(ImageFormat):
        raise BadSetting(f"{format!r} is not a format of charts: use one of {', '.join(get_args(ImageFormat))}")


def file_name(*parts: str) -> str:
    """The parts as a file's name; characters with a meaning for folders or shells become underscores."""
    return "-".join(re.sub(r"[^\w.-]", "_", part).lstrip(".") for part in parts)


def _require_packages() -> None:
    try:
        import altair  # noqa: F401
        import vl_convert  # noqa: F401
    except ImportError as error:
        raise PackageMissing(f'charts need {error.name}: pip install "creditgrid[plots]"') from error


def _wanted(view: ExperimentView, name: str | None) -> list[Chart]:
    if view.problem is not None:
        raise BadSetting(f"the experiment {view.name} cannot be used: {view.problem}")
    if not view.charts:
        raise BadSetting(f"the experiment {view.name} declares no charts")
    wanted = [chart for chart in view.charts if name in (None, chart.name)]
    if not wanted:
        known = ", ".join(chart.name for chart in view.charts)
        raise BadSetting(f"{view.name} has no chart {name!r}; it has {known}")
    return wanted


def _fixed(rows: Sequence[Mapping[str, Any]], fix: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    for name, wanted in fix.items():
        if name not in rows[0]:
            raise BadSetting(f"there is no column {name!r} to fix")
        kept = [row for row in rows if _is(row[name], wanted)]
        if not kept:
            values = ", ".join(sorted({label_of(row[name]) for row in rows}))
            raise BadSetting(f"no row has {name} = {label_of(wanted)}; there are {values}")
        rows = kept
    return rows


def _is(value: Any, wanted: Any) -> bool:
    if not isinstance(wanted, str) or isinstance(value, str):
        return bool(value == wanted)
    try:
        return label_of(value) == wanted or (value is not None and float(value) == float(wanted))
    except ValueError:
        return False
