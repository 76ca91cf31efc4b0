"""One panel of a chart: lines with bands, grouped bars with whiskers, or a heat map."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from creditgrid.client.plots.labels import label_of
from creditgrid.client.plots.scales import SHORT, Scaled, along, colour, dash, scaled

if TYPE_CHECKING:
    import altair as alt

    from creditgrid.client.plots.points import Panel, Picture

MANY_POINTS = 30
"""A line with more has no dots; it still has tooltips."""
FEW_CELLS = 80
"""A heat map with more has no numbers in its cells."""
INK = "#222222"
LETTER = 6.6
"""Width of a letter of a label, pixels."""


class Place(NamedTuple):
    """The size of a panel, and the titles and legend that its place on the page needs; ``data`` names its records."""

    data: str
    width: float
    height: float
    x_title: bool
    y_title: bool
    legend: bool


def draw(picture: Picture, panel: Panel, place: Place) -> alt.LayerChart:
    """The panel as a chart; panels of one measure have the same scale."""
    import altair as alt

    mark = picture.chart.mark
    layers = {"line": _lines, "bar": _bars, "heatmap": _heat_map}[mark](picture, panel, place)
    what = [panel.column] if _several(panel) else [panel.measure.title] if mark == "heatmap" else []
    heading = [*what, *panel.heading]
    title = alt.TitleParams(heading, fontSize=13, fontWeight="normal", anchor="middle", offset=6)
    return alt.LayerChart(layer=layers, width=place.width, height=place.height, title=title if heading else "")


def _lines(picture: Picture, panel: Panel, place: Place) -> list[alt.Chart]:
    import altair as alt

    values = _scale_of(picture, panel)
    if picture.xs is None:
        horizontal = along(picture.chart.x.scale, [float(point.x) for one in picture.panels for point in one.points])
        x = alt.X(
            "x:Q", scale=horizontal.scale, axis=_axis(picture.chart.x.title, place.x_title, horizontal, grid=False)
        )
    else:
        x = alt.X("x:O", scale=alt.Scale(domain=list(picture.xs)), axis=_category_axis(picture, place))
    y = alt.Y("mean:Q", scale=values.scale, axis=_axis(panel.measure.title, place.y_title, values))
    base = alt.Chart(alt.NamedData(name=place.data)).encode(x=x, **_series(picture))
    ranged = base.transform_filter("isValid(datum.low)").encode(y=alt.Y("low:Q", scale=values.scale), y2="high:Q")
    lone = len({point.x for point in panel.points}) == 1  # a band needs a width
    interval = ranged.mark_rule(strokeWidth=1.5) if lone else ranged.mark_area(opacity=0.18)
    line = base.mark_line(strokeWidth=2, clip=True).encode(y=y)
    if picture.series.columns and not picture.series.numeric:
        line = line.encode(strokeDash=dash(picture.series))
    crowded = len({point.x for point in panel.points}) > MANY_POINTS
    points = base.mark_point(filled=True, size=36, opacity=0 if crowded else 1).encode(
        y=y, tooltip=_tooltip(picture, panel)
    )
    return [interval, line, points]


def _bars(picture: Picture, panel: Panel, place: Place) -> list[alt.Chart]:
    import altair as alt

    values = _scale_of(picture, panel)
    labels = list(picture.series.labels)
    x = alt.X(
        "x:N", scale=alt.Scale(domain=list(picture.xs or ()), paddingInner=0.25), axis=_category_axis(picture, place)
    )
    base = alt.Chart(alt.NamedData(name=place.data)).encode(
        x=x, xOffset=alt.XOffset("series:N", scale=alt.Scale(domain=labels))
    )
    y = alt.Y("mean:Q", scale=values.scale, axis=_axis(panel.measure.title, place.y_title, values), stack=None)
    bars = base.mark_bar().encode(y=y, tooltip=_tooltip(picture, panel), **_series(picture))
    ranged = base.transform_filter("isValid(datum.low)").encode(y=alt.Y("low:Q", scale=values.scale), y2="high:Q")
    whiskers = ranged.mark_rule(color=INK, strokeWidth=1.5)
    return [bars, whiskers]


def _heat_map(picture: Picture, panel: Panel, place: Place) -> list[alt.Chart]:
    import altair as alt

    limit = _limit(picture, panel)
    legend = (
        alt.Legend(
            title=panel.measure.title if _several(panel) else None,
            gradientLength=place.height,
            titleLimit=0,
            format="~g",
        )
        if place.legend
        else None
    )
    base = alt.Chart(alt.NamedData(name=place.data)).encode(
        x=alt.X("x:O", scale=alt.Scale(domain=list(picture.xs or ())), axis=_category_axis(picture, place)),
        y=alt.Y(
            "series:O",
            scale=alt.Scale(domain=list(picture.series.labels)),
            axis=alt.Axis(
                title=picture.series.title if place.y_title else None,
                labels=place.y_title,
                grid=False,
                labelOverlap=True,
                ticks=False,
            ),
        ),
    )
    cells = base.mark_rect(stroke="white").encode(
        color=alt.Color(
            "mean:Q", scale=alt.Scale(scheme="blueorange", domain=[-limit, limit], domainMid=0), legend=legend
        ),
        tooltip=_tooltip(picture, panel),
    )
    ink = alt.condition("datum.dark", alt.value("white"), alt.value(INK))
    numbers = base.mark_text(fontSize=11).encode(text="text:N", color=ink)
    return [cells, numbers] if len(panel.points) <= FEW_CELLS else [cells]


def _several(panel: Panel) -> bool:
    """Whether the panel must name its column, because its measure has several."""
    return len(panel.measure.columns) > 1


def _kin(picture: Picture, panel: Panel) -> Sequence[Panel]:
    return [one for one in picture.panels if one.measure == panel.measure]


def _scale_of(picture: Picture, panel: Panel) -> Scaled:
    """The scale of all panels of the measure."""
    log = panel.measure.scale == "log"
    ends = []
    for point in (point for one in _kin(picture, panel) for point in one.points):
        low = point.mean - (point.ci95 or 0.0)
        # An interval that almost reaches 0 would make a log axis too long.
        ends += [max(low, point.mean / 10) if log else low, point.mean + (point.ci95 or 0.0)]
    return scaled(panel.measure.scale, ends, zero=picture.chart.mark == "bar")


def _limit(picture: Picture, panel: Panel) -> float:
    """The end of a heat map's colours, on both sides of 0 and for all panels of the measure."""
    return max((abs(point.mean) for one in _kin(picture, panel) for point in one.points), default=0.0) or 1.0


def records(picture: Picture, panel: Panel) -> list[dict[str, Any]]:
    """The points as Vega's records."""
    lowest = _scale_of(picture, panel).low if panel.measure.scale == "log" else -math.inf
    dark = 0.6 * _limit(picture, panel)
    position: Callable[[Any], float] = float if picture.xs is None else picture.xs.index
    out = []
    for point in sorted(panel.points, key=lambda point: (point.series, position(point.x))):
        record = point._asdict() | {"series": picture.series.labels[point.series]}
        if picture.series.numeric:
            (record["level"],) = picture.series.combinations[point.series]
        if point.ci95 is not None:
            # On a log axis an interval that reaches 0 ends where the axis does.
            record["low"], record["high"] = max(point.mean - point.ci95, lowest), point.mean + point.ci95
        if picture.chart.mark == "heatmap":
            text = label_of(float(f"{point.mean:.2g}")).replace("-", "−")
            record |= {"text": text, "dark": abs(point.mean) > dark}
        out.append(record)
    return out


def _series(picture: Picture) -> dict[str, Any]:
    if not picture.series.columns:
        return {}
    encoding: dict[str, Any] = {"color": colour(picture.series, line=picture.chart.mark == "line")}
    if picture.chart.mark == "line":
        encoding["detail"] = "series:N"
    return encoding


def _tooltip(picture: Picture, panel: Panel) -> list[alt.Tooltip]:
    import altair as alt

    tips = [alt.Tooltip("x:N" if picture.xs is not None else "x:Q", title=picture.chart.x.title)]
    if picture.series.columns:
        tips.append(alt.Tooltip("series:N", title=picture.series.title))
    tips.append(alt.Tooltip("mean:Q", title=panel.column, format=".4~g"))
    if any(point.ci95 is not None for point in panel.points):
        tips += [alt.Tooltip(f"{end}:Q", title=f"95 % {end}", format=".4~g") for end in ("low", "high")]
    return [*tips, alt.Tooltip("n:Q", title="seeds")]


def _axis(title: str, shown: bool, found: Scaled, grid: bool = True) -> alt.Axis:
    import altair as alt

    options: dict[str, Any] = {"labelOverlap": True} if found.ticks is None or not grid else {}
    if found.ticks is not None:
        options["values"] = found.ticks
    if grid:  # a darker line at 0 separates ascent from descent
        options["gridColor"] = {"condition": {"test": "datum.value === 0", "value": "#9a9a9a"}, "value": "#e8e8e8"}
    if found.short:
        options["labelExpr"] = SHORT
    return alt.Axis(title=title if shown else None, grid=grid, tickCount=6, **options)


def _category_axis(picture: Picture, place: Place) -> alt.Axis:
    """Labels are horizontal if they fit, with one part per line; panels below one another share them."""
    import altair as alt

    labels = picture.xs or ()
    flat = flat_width(labels) <= place.width
    broken: dict[str, Any] = {"labelExpr": "split(datum.value, ', ')"} if flat else {}
    return alt.Axis(
        title=picture.chart.x.title if place.x_title else None,
        labels=place.x_title,
        labelAngle=0 if flat else -35,
        grid=False,
        ticks=False,
        labelOverlap=flat,
        **broken,
    )


def flat_width(labels: Sequence[str]) -> float:
    """Pixels of the labels side by side, with one part per line."""
    return len(labels) * (4 + LETTER * max((len(part) for label in labels for part in label.split(", ")), default=0))
