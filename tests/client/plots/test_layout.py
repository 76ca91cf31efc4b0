"""The page of a chart."""

from __future__ import annotations

from charting import chart, grid, heading, panels, spec, view

from creditgrid.client.plots.charts import charts


def test_whole_grids_of_panels_are_aligned() -> None:
    rows = [row for mode in ("norm", "raw") for kappa in (1.0, 2.0, 3.0) for row in grid(mode=mode, kappa=kappa)]
    found = spec(charts(view(chart()), rows)["change"])
    assert [run["columns"] for run in found["vconcat"]] == [3]
    assert [heading(panel) for panel in panels(found)][2:4] == [
        ["mode = raw", "kappa = 3"],
        ["mode = norm", "kappa = 1"],
    ]
