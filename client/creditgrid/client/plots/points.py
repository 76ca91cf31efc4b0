"""The numbers of a chart: the rows of a sweep, grouped into panels and points and averaged over the seeds.

Nothing here draws, or depends on an experiment: the chart names the columns, the JSON Schema names the parameters and
orders their values, and the rows show which parameters vary.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeAlias

from creditgrid.client.errors import BadSetting
from creditgrid.client.plots.labels import COLOURS, Values, is_number, label_of
from creditgrid.core.experiment import Axis, Chart
from creditgrid.core.statistics import mean_std_ci

Row: TypeAlias = Mapping[str, Any]
AVERAGED = ("seed", "probe_seed")
"""A point is the mean over these."""
MOST_ACROSS = 4
MOST_PANELS = 24
"""More are not readable on one page."""
MOST_SERIES: dict[str, float] = {"line": 24, "bar": len(COLOURS), "heatmap": math.inf}
"""Lines have dashes too, and rows of a heat map have labels, so they may be more than the colours."""

FIX = "fix some of these to one value: --fix NAME=VALUE, or fix={NAME: VALUE}"


class Point(NamedTuple):
    """The mean over ``n`` seeds; ``ci95``, the half-width of its 95 % interval, is None for one seed.

    ``series`` is an index into ``Picture.series``.
    """

    x: float | str
    series: int
    n: int
    mean: float
    ci95: float | None


class Panel(NamedTuple):
    """One column of one measure, for one value of each other parameter that varies: ``heading`` has "name = value"."""

    measure: Axis
    column: str
    heading: tuple[str, ...]
    points: Sequence[Point]


@dataclass(frozen=True, slots=True)
class Picture:
    """A chart's numbers.

    ``panels`` are ordered by measure and empty if there is nothing to show; ``xs`` are the labels along x in order, or
    None if x is a number; ``notes`` say what is averaged and what is left out. If the headings are a full grid,
    ``across`` panels are side by side, one for each value of the last parameter; otherwise ``across`` is None.
    """

    chart: Chart
    panels: Sequence[Panel]
    xs: Sequence[str] | None
    series: Values
    notes: Sequence[str]
    across: int | None


class _Placed(NamedTuple):
    x: float | str
    series: int
    row: Row


def picture(chart: Chart, parameters: Mapping[str, Any], rows: Sequence[Row]) -> Picture:
    """The panels and points of ``chart``.

    Args:
        parameters: name → JSON Schema.
        rows: of a sweep; every row has every column.

    Raises:
        BadSetting: for a column that the rows do not have, too many panels, or rows that the chart cannot distinguish.
    """
    chart = _with_own_parameters(chart, parameters, rows)
    for name in (*chart.x.columns, *chart.series, *(column for axis in chart.measures for column in axis.columns)):
        if any(name not in row for row in rows):
            raise BadSetting(f"chart {chart.name} shows the column {name}, which the rows do not have")
    whole = [row for row in rows if not row.get("diverged")]
    kept = [row for row in whole if _along(chart, row) is not None]
    placed, xs, series = _place(chart, parameters, kept)
    panelled, across = _panelled(placed, parameters)
    combinations = Values.of(panelled, [_take(row, panelled) for row in kept], parameters).combinations
    shown = [
        (axis, name) for axis in chart.measures for name in axis.columns if any(row[name] is not None for row in kept)
    ]
    if len(shown) * len(combinations) > MOST_PANELS:
        counts = ", ".join(f"{name} ({len({row[name] for row in kept})} values)" for name in panelled)
        raise BadSetting(
            f"chart {chart.name} would have {len(shown) * len(combinations)} panels, more than {MOST_PANELS}: one for "
            f"each of {len(shown)} columns and each combination of {counts}; {FIX}"
        )
    if not series.numeric and len(series.labels) > MOST_SERIES[chart.mark]:
        raise BadSetting(
            f"chart {chart.name} would have {len(series.labels)} series, more than the {MOST_SERIES[chart.mark]} that "
            f"can be distinguished, along {series.title}; {FIX}"
        )
    split: dict[tuple[Any, ...], list[_Placed]] = defaultdict(list)
    for one in placed:
        split[_take(one.row, panelled)].append(one)
    panels = [
        Panel(
            axis,
            column,
            tuple(f"{name} = {label_of(value)}" for name, value in zip(panelled, combination, strict=True)),
            list(_points(chart, column, split[combination])),
        )
        for axis, column in shown
        for combination in combinations
    ]
    panels, hidden = _above_zero(panels)
    notes = [
        *_averaged(chart, panels),
        *_left_out(len(rows) - len(whole), len(rows), "diverged and {} not shown"),
        *_left_out(
            len(whole) - len(kept), len(rows), f"no place on the axis of {chart.x.columns[0]} and {{}} not shown"
        ),
        *(
            note
            for _, column in shown
            for note in _left_out(sum(row[column] is None for row in kept), len(rows), f"no {column}")
        ),
        *(f"{n:,} mean{'s' * (n > 1)} of {column} not above 0: no place on a log axis" for column, n in hidden.items()),
    ]
    return Picture(chart, panels, xs, series, notes, across)


def _with_own_parameters(chart: Chart, parameters: Mapping[str, Any], rows: Sequence[Row]) -> Chart:
    """The chart with the parameters that belong to what it shows: those of a method that vary distinguish its series.

    The JSON Schema of a parameter says by ``x-methods`` that methods have it, and so for other units.
    """
    x = chart.x
    if chart.mark != "line":
        x = replace(x, columns=_extended(x.columns, parameters, rows))
    return replace(chart, x=x, series=_extended(chart.series, parameters, rows))


def _extended(columns: Sequence[str], parameters: Mapping[str, Any], rows: Sequence[Row]) -> list[str]:
    extended = list(columns)
    for column in columns:
        for name, schema in parameters.items():
            if f"x-{column}s" in schema and name not in extended and all(name in row for row in rows):
                pairs = {(row.get(column), row[name]) for row in rows}
                if len(pairs) > len({unit for unit, _ in pairs}):
                    extended.append(name)
    return extended


def _place(
    chart: Chart, parameters: Mapping[str, Any], kept: Sequence[Row]
) -> tuple[list[_Placed], list[str] | None, Values]:
    """The rows with their x and series; the labels along x, or None if x is a number."""
    series = Values.of(chart.series, [_take(row, chart.series) for row in kept], parameters)
    number = {combination: i for i, combination in enumerate(series.combinations)}
    along = [_along(chart, row) for row in kept]
    names: dict[Any, str] | None = None
    if chart.mark != "line":
        names = dict(Values.of(chart.x.columns, along, parameters).labelled)
    elif not all(is_number(x) for x in along):
        singles = Values.of(chart.x.columns[:1], [(x,) for x in along], parameters)
        names = {x: label for (x,), label in singles.labelled.items()}
    placed = [
        _Placed(x if names is None else names[x], number[_take(row, chart.series)], row)
        for x, row in zip(along, kept, strict=True)
    ]
    return placed, None if names is None else list(names.values()), series


def _along(chart: Chart, row: Row) -> Any:
    """A row's x: one value for a line, otherwise the values of all columns; None if it has no place on the axis."""
    if chart.mark != "line":
        return _take(row, chart.x.columns)
    value: Any = next((row[name] for name in chart.x.columns if row[name] is not None), None)
    return None if chart.x.scale == "log" and is_number(value) and value <= 0 else value


def _panelled(placed: Sequence[_Placed], parameters: Mapping[str, Any]) -> tuple[list[str], int | None]:
    """The parameters that still vary among the rows of one point: each value has its own panels, no mean mixes them.

    The values of the last one are side by side if all combinations exist; also returns how many, or None.
    """
    panelled: list[str] = []
    keys: list[tuple[Any, ...]] = [(one.x, one.series) for one in placed]
    for name in parameters:
        if name in AVERAGED or not placed or name not in placed[0].row:
            continue
        longer = [(*key, one.row[name]) for key, one in zip(keys, placed, strict=True)]
        if len(set(longer)) > len(set(keys)):
            panelled.append(name)
            keys = longer
    counts = {name: len({one.row[name] for one in placed}) for name in panelled}
    panelled.sort(key=lambda name: counts[name] if counts[name] <= MOST_ACROSS else 0)
    whole = len({_take(one.row, panelled) for one in placed}) == math.prod(counts.values())
    if len(panelled) < 2 or not whole or counts[panelled[-1]] > MOST_ACROSS:
        return panelled, None
    return panelled, counts[panelled[-1]]


def _points(chart: Chart, column: str, placed: Sequence[_Placed]) -> Iterator[Point]:
    """The points of one panel."""
    found: dict[tuple[float | str, int], dict[tuple[Any, ...], float]] = defaultdict(dict)
    for x, series, row in placed:
        value = row[column]
        if value is None:
            continue
        if not is_number(value):
            raise BadSetting(f"chart {chart.name} shows the column {column}, which holds {value!r}: not a number")
        # A cell with layers or epochs has several rows; a value that is the same in all of them counts once.
        if found[x, series].setdefault(tuple(row.get(name) for name in AVERAGED), value) != value:
            raise BadSetting(
                f"chart {chart.name} shows the column {column}, which differs between rows of one seed at "
                f"{chart.x.columns[0]} {label_of(x)}: its x and series do not distinguish these rows"
            )
    for (x, series), values in found.items():
        n, mean, _, ci95 = mean_std_ci(list(values.values()))
        yield Point(x, series, n, mean, ci95)


def _above_zero(panels: Sequence[Panel]) -> tuple[list[Panel], dict[str, int]]:
    """The panels without the points that have no place on a log axis, and the number of those points by column."""
    out, hidden = [], Counter[str]()
    for panel in panels:
        points = [point for point in panel.points if panel.measure.scale != "log" or point.mean > 0]
        if lost := len(panel.points) - len(points):
            hidden[panel.column] += lost
        out.append(panel._replace(points=points))
    return out, dict(hidden)


def _averaged(chart: Chart, panels: Sequence[Panel]) -> list[str]:
    """A note on what a point is the mean of."""
    counts = {point.n for panel in panels for point in panel.points}
    if not counts:
        return []
    if counts == {1}:
        return ["one seed: no interval"]
    seeds = f"{max(counts)}" if len(counts) == 1 else f"{min(counts)} to {max(counts)}"
    drawn = {"line": "; band: 95 % interval (Student t)", "bar": "; whiskers: 95 % interval (Student t)"}
    return [f"mean over {seeds} seeds{drawn.get(chart.mark, '')}"]


def _left_out(lost: int, total: int, how: str) -> list[str]:
    """ "3 of 210 rows diverged and are not shown", where any did."""
    if not lost:
        return []
    one = lost == 1
    verb = "" if how.startswith("diverged") else "has " if one else "have "
    return [f"{lost:,} of {total:,} row{'s' * (total > 1)} {verb}{how.format('is' if one else 'are')}"]


def _take(row: Row, columns: Sequence[str]) -> tuple[Any, ...]:
    return tuple(row[name] for name in columns)
