"""The page of a chart: its panels in rows, their sizes, the heading, the legend and the fonts."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal

from creditgrid.client.plots.panels import Place, draw, flat_width, records

if TYPE_CHECKING:
    import altair as alt

    from creditgrid.client.plots.points import Panel, Picture

TEXT = "#222222"
WIDEST = 1400
"""Pixels of a row of panels."""
CELL = (54, 30)
"""Width and height of a heat map's cell with a number."""


def compose(picture: Picture) -> alt.VConcatChart:
    """All panels of a picture on one page."""
    import altair as alt

    heading = alt.TitleParams(
        picture.chart.title, subtitle=list(picture.notes), anchor="start", offset=14, subtitlePadding=5
    )
    # Altair copies the whole chart at every change, so there is one call, and the data is added last, by name.
    page = alt.vconcat(
        *_grids(picture),
        spacing=20,
        resolve=_resolve(picture),
        title=heading,
        background="white",
        padding=14,
        config=style(),
    )
    page["datasets"] = {_name(i): records(picture, panel) for i, panel in enumerate(picture.panels)}
    return page


def _resolve(picture: Picture) -> alt.Resolve:
    """All panels share a legend, except those of heat maps: each measure has its own colour scale."""
    import altair as alt

    color: Literal["independent", "shared"] = "independent" if picture.chart.mark == "heatmap" else "shared"
    return alt.Resolve(scale=alt.ScaleResolveMap(color=color, strokeDash="shared"))


def _grids(picture: Picture) -> Iterator[alt.ConcatChart]:
    """The panels of each run side by side, as many as fit the page's width."""
    import altair as alt

    runs, resolve = _runs(picture), _resolve(picture)
    longest = max(map(len, runs))
    width, height = _size(picture, longest)
    across = min(picture.across or _across(longest), max(1, int(WIDEST / width)))
    apart = picture.chart.mark != "heatmap"  # each measure has its own vertical axis
    number = itertools.count()
    for run in runs:
        panels = [
            draw(
                picture,
                panel,
                Place(
                    _name(next(number)),
                    width,
                    height,
                    x_title=i + across >= len(run),
                    y_title=i % across == 0 or (apart and run[i - 1].measure != panel.measure),
                    legend=i + 1 == len(run) or (i + 1) % across == 0 or run[i + 1].measure != panel.measure,
                ),
            )
            for i, panel in enumerate(run)
        ]
        yield alt.concat(
            *panels, columns=across, spacing=alt.RowColnumber(row=18, column=24), align="each", resolve=resolve
        )


def _name(panel: int) -> str:
    return f"panel_{panel}"


def _runs(picture: Picture) -> list[list[Panel]]:
    """The panels that share rows: those of a column, or of a measure, or all."""
    if any(panel.heading != picture.panels[0].heading for panel in picture.panels):
        return [list(run) for _, run in groupby(picture.panels, key=lambda panel: panel.column)]
    runs = [list(run) for _, run in groupby(picture.panels, key=lambda panel: panel.measure)]
    return [list(picture.panels)] if max(map(len, runs)) == 1 else runs


def _across(panels: int) -> int:
    """How many panels are side by side."""
    if panels <= 3:
        return panels
    if panels == 4:
        return 2
    return 3 if panels <= 9 else 4


def _size(picture: Picture, panels: int) -> tuple[float, float]:
    """Width and height of a panel in pixels; more panels are smaller."""
    if picture.chart.mark == "heatmap":
        columns, rows = len(picture.xs or ()), len(picture.series.labels)
        return min(CELL[0], 640 / columns) * columns, min(CELL[1], 480 / rows) * rows
    width: float
    width, height = {1: (460, 300), 2: (340, 240), 3: (280, 210), 4: (340, 220)}.get(panels, (240, 170))
    if picture.chart.mark == "bar":
        bars = len(picture.xs or ()) * max(len(picture.series.labels), 1)
        width = max(width, min(14 * bars, math.ceil(1100 / _across(panels))))
        if panels <= 2 and (flat := flat_width(picture.xs or ())) <= WIDEST / 2:
            width = max(width, flat)
    return width, height


def style() -> alt.Config:
    """The fonts and colours of a page."""
    import altair as alt

    text: dict[str, Any] = {
        "labelFontSize": 12,
        "titleFontSize": 13,
        "titleFontWeight": "normal",
        "labelColor": TEXT,
        "titleColor": TEXT,
        "labelLimit": 260,
    }
    return alt.Config(
        title=alt.TitleConfig(fontSize=17, subtitleFontSize=12.5, color=TEXT, subtitleColor="#555555"),
        axis=alt.AxisConfig(gridColor="#e8e8e8", domainColor="#888888", tickColor="#888888", titlePadding=8, **text),
        legend=alt.LegendConfig(**text),
        view=alt.ViewConfig(stroke="#cccccc"),
    )
