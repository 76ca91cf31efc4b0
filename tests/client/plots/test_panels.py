"""Panels: lines, bars and heat maps, their scales and headings."""

from __future__ import annotations

import statistics

import pytest
from charting import SEEDS, chart, encodings, grid, heading, panels, spec, value, view

from creditgrid.client.plots.charts import charts
from creditgrid.core.experiment import Axis


def test_columns_of_a_measure_share_its_scale_and_are_named() -> None:
    both = chart(measures=[Axis(columns=["change", "other"], title="nats", scale="symlog")])
    found = spec(charts(view(both), grid())["change"])
    assert [heading(panel) for panel in panels(found)] == [["change"], ["other"]]
    domains = [e["y"]["scale"]["domain"] for e in encodings(found) if "y" in e]
    assert len(domains) == 6
    assert all(domain == domains[0] for domain in domains)
    assert domains[0][0] < -12 < 12 < domains[0][1]


def test_bars_are_grouped_and_stand_on_zero() -> None:
    rows = [row for kappa in (0.1, 1.0) for row in grid(kappa=kappa) if row["eta"] == 1e-3]
    found = spec(charts(view(chart("bar", ["mode", "kappa"])), rows)["change"])
    (points,) = found["datasets"].values()
    assert {point["x"] for point in points} == {"raw, kappa = 0.1", "raw, kappa = 1"}
    bars = next(e for e in encodings(found) if "xOffset" in e and "y2" not in e)
    assert bars["xOffset"]["scale"]["domain"] == ["oracle", "dfa"]
    assert bars["y"]["scale"]["domain"][0] == 0
    assert any("y2" in e for e in encodings(found))


def test_heat_maps_are_centred_on_zero() -> None:
    rows = [row | {"layer": layer, "change": row["change"] - 10 * layer} for row in grid() for layer in range(3)]
    rows = [row for row in rows if row["eta"] == 1e-3]
    found = spec(charts(view(chart("heatmap", ["layer"])), rows)["change"])
    (points,) = found["datasets"].values()
    colour = next(e["color"] for e in encodings(found) if "scale" in e.get("color", {}))
    low, high = colour["scale"]["domain"]
    assert -low == high == pytest.approx(max(abs(point["mean"]) for point in points))
    assert colour["scale"]["domainMid"] == 0
    texts = {(point["series"], point["x"]): point["text"] for point in points}
    mean = statistics.fmean(value("dfa", 1e-3, seed) for seed in SEEDS) - 20
    assert texts["dfa", "2"] == f"{mean:.2g}".replace("-", "−")
    assert any("text" in e for e in encodings(found))
