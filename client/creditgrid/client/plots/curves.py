"""What the runs of a sweep measure over their epochs: a faint line for each run, and the mean of those that differ in
their seeds alone.

A column that is the same in all rows of a run is a parameter, and a number that changes within a run is a metric. So
the curves of a plugin are drawn like those of trainings and fits.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any, TypeAlias

from creditgrid.client.plots.labels import COLOURS, Values, is_number
from creditgrid.client.plots.scales import SHORT, along, colour, scaled

if TYPE_CHECKING:
    import altair as alt

Row: TypeAlias = Mapping[str, Any]

NAME = "curves"
"""The name of the chart."""
WANTED = ("loss", "accuracy")
"""Metrics with one of these in their name are drawn; of a run that has none, all but ``TIMES``."""
TIMES = ("step_size", "images_per_s", "seconds")
PROVENANCE = ("run", "stage", "kind", "sweep", "epoch", "measured_at", "attempt", "host", "device")
MOST_SERIES, MOST_RUNS, MOST_POINTS, MOST_METRICS = 24, 200, 400, 6
"""What one kind of run shows at most; the points are those of one run."""
FEW_POINTS = 30
"""A line with no more has dots."""
ROUND = 100
"""A metric whose values differ by so large a factor has a logarithmic axis."""


@dataclass(frozen=True, slots=True)
class KindCurves:
    """The curves of one kind of run: ``rows`` of each run in the order of its epochs."""

    kind: str
    metrics: Sequence[str]
    series: Values
    rows: Mapping[str, Sequence[Row]]
    of_run: Mapping[str, int]
    """The index in ``series`` of each run."""
    notes: Sequence[str]


def kinds(rows: Sequence[Row]) -> list[KindCurves]:
    """The curves of each kind that has a metric to draw, from the rows of the table of curves."""
    by_kind: dict[str, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        by_kind[row["kind"]][row["run"]].append(row)
    found = [_kind(kind, runs) for kind, runs in sorted(by_kind.items(), reverse=True)]
    return [one for one in found if one.metrics]


def _kind(kind: str, runs: Mapping[str, list[Row]]) -> KindCurves:
    for own in runs.values():
        own.sort(key=lambda row: row["epoch"])
    metrics = _metrics(runs)
    chosen = _varying(runs, metrics)
    series = Values.of(chosen, [_take(own[0], chosen) for own in runs.values()], {})
    number = {combination: i for i, combination in enumerate(series.combinations)}
    of_run = {run: number[_take(own[0], chosen)] for run, own in runs.items()}
    shown = dict(sorted(runs.items(), key=lambda item: of_run[item[0]])[:MOST_RUNS])
    notes = [f"{len(shown):,} of {len(runs):,} runs are shown"] if len(shown) < len(runs) else []
    if len(series.labels) > MOST_SERIES:  # colours would say nothing
        series, of_run = Values.of((), [()], {}), dict.fromkeys(runs, 0)
        notes.append(f"runs differ in {', '.join(chosen)} and have one colour")
    return KindCurves(kind, metrics, series, shown, of_run, notes)


def _metrics(runs: Mapping[str, Sequence[Row]]) -> list[str]:
    """The metrics to draw."""
    rows = [row for own in runs.values() for row in own]
    measured = [
        name
        for name in rows[0]
        if name not in PROVENANCE
        and any(isinstance(row[name], float) for row in rows)
        and all(row[name] is None or is_number(row[name]) for row in rows)
        and any(len({row[name] for row in own}) > 1 for own in runs.values())
    ]
    wanted = [name for name in measured if any(word in name.lower() for word in WANTED)]
    return (wanted or [name for name in measured if name not in TIMES])[:MOST_METRICS]


def _varying(runs: Mapping[str, Sequence[Row]], metrics: Sequence[str]) -> list[str]:
    """The parameters that tell runs apart, besides seeds; one that others determine is left out."""
    firsts = [own[0] for own in runs.values()]
    chosen: list[str] = []
    keys: list[tuple[Any, ...]] = [() for _ in firsts]
    for name in firsts[0]:
        seed = name == "seed" or name.endswith("_seed")
        if seed or name in PROVENANCE or name in metrics or name.endswith("_fingerprint"):
            continue
        if any(row[name] != own[0][name] for own in runs.values() for row in own):
            continue  # it is measured
        longer = [(*key, row[name]) for key, row in zip(keys, firsts, strict=True)]
        if len(set(longer)) > len(set(keys)):
            chosen.append(name)
            keys = longer
    return chosen


def _take(row: Row, columns: Sequence[str]) -> tuple[Any, ...]:
    return tuple(row[name] for name in columns)


def page(rows: Sequence[Row]) -> alt.VConcatChart | None:
    """All curves on one page: a row of panels for each kind, a panel for each metric. None if there is nothing."""
    import altair as alt

    from creditgrid.client.plots.layout import style

    found = kinds(rows)
    if not found:
        return None
    datasets: dict[str, list[dict[str, Any]]] = {}
    bands = []
    for curves in found:
        panels = [_panel(curves, metric, datasets) for metric in curves.metrics]
        counts = sorted({list(curves.of_run.values()).count(i) for i in set(curves.of_run.values())})
        runs = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        says = "one run" if counts == [1] else f"faint: one run; bold: the mean of {runs} runs with other seeds"
        title = alt.TitleParams(
            curves.kind, subtitle=[says, *curves.notes], anchor="start", fontSize=15, fontWeight="normal"
        )
        shared = alt.Resolve(scale=alt.ScaleResolveMap(color="shared"))
        bands.append(alt.concat(*panels, columns=3, spacing=24, title=title, resolve=shared))
    made = alt.vconcat(
        *bands,
        spacing=26,
        resolve=alt.Resolve(scale=alt.ScaleResolveMap(color="independent")),
        title=alt.TitleParams("Curves", anchor="start", offset=14),
        background="white",
        padding=14,
        config=style(),
    )
    made["datasets"] = datasets
    return made


def _panel(curves: KindCurves, metric: str, datasets: dict[str, list[dict[str, Any]]]) -> alt.LayerChart:
    import altair as alt

    data = f"{curves.kind}/{metric}"
    datasets[data], datasets[f"{data}/mean"] = list(_lines(curves, metric)), list(_means(curves, metric))
    values = [record["y"] for name in (data, f"{data}/mean") for record in datasets[name]]
    positive = [value for value in values if value > 0]
    wide = len(positive) == len(values) > 0 and max(positive) / min(positive) > ROUND
    vertical, horizontal = scaled("log" if wide else "linear", values), along("linear", _epochs(curves))
    ticks: dict[str, Any] = {} if horizontal.ticks is None else {"values": horizontal.ticks}
    marks: dict[str, Any] = {"tickCount": 6} if vertical.ticks is None else {"values": vertical.ticks}
    if vertical.short:
        marks["labelExpr"] = SHORT
    encoding: dict[str, Any] = {
        "x": alt.X("epoch:Q", scale=horizontal.scale, axis=alt.Axis(title="epoch", grid=False, **ticks)),
        "y": alt.Y("y:Q", scale=vertical.scale, axis=alt.Axis(title=metric, **marks)),
    }
    if curves.series.columns:
        encoding["color"] = colour(curves.series, line=True)
    ink: dict[str, Any] = {} if curves.series.columns else {"color": COLOURS[0]}
    base = alt.Chart(alt.NamedData(name=data)).encode(**encoding, detail="run:N")
    mean = alt.Chart(alt.NamedData(name=f"{data}/mean")).encode(**encoding, detail="series:N")
    tip = [alt.Tooltip("epoch:Q"), alt.Tooltip("y:Q", title=metric, format=".4~g"), alt.Tooltip("n:Q", title="runs")]
    dots = len({record["epoch"] for record in datasets[data]}) <= FEW_POINTS
    layers = [
        base.mark_line(opacity=0.4, strokeWidth=1, clip=True, **ink),
        mean.mark_line(strokeWidth=2.2, clip=True, **ink),
        mean.mark_point(filled=True, size=26, opacity=1 if dots else 0, **ink).encode(tooltip=tip),
    ]
    return alt.LayerChart(layer=layers, width=300, height=210)


def _epochs(curves: KindCurves) -> list[float]:
    """The epochs of all runs: panels of a kind have one scale."""
    return sorted({float(row["epoch"]) for own in curves.rows.values() for row in own})


def _lines(curves: KindCurves, metric: str) -> Iterator[dict[str, Any]]:
    """The points of each run, evenly thinned where there are many."""
    for number, (run, own) in enumerate(curves.rows.items()):
        points = [(row["epoch"], row[metric]) for row in own if row[metric] is not None]
        for epoch, value in points[:: math.ceil(len(points) / MOST_POINTS) or 1]:
            yield {"run": number, "epoch": epoch, "y": value} | _series(curves, curves.of_run[run])


def _means(curves: KindCurves, metric: str) -> Iterator[dict[str, Any]]:
    """The means of the runs of a series at each epoch that one of them has."""
    found: dict[int, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for run, own in curves.rows.items():
        for row in own:
            if row[metric] is not None:
                found[curves.of_run[run]][row["epoch"]].append(row[metric])
    for series, by_epoch in found.items():
        epochs = sorted(by_epoch)
        for epoch in epochs[:: math.ceil(len(epochs) / MOST_POINTS) or 1]:
            values = by_epoch[epoch]
            yield {"epoch": epoch, "y": fmean(values), "n": len(values)} | _series(curves, series)


def _series(curves: KindCurves, number: int) -> dict[str, Any]:
    found: dict[str, Any] = {"series": curves.series.labels[number] if curves.series.columns else ""}
    if curves.series.numeric and curves.series.columns:
        (found["level"],) = curves.series.combinations[number]
    return found
