"""The numbers in a chart: means and intervals, what is left out, and which panels there are."""

from __future__ import annotations

import math
import statistics

import pytest
from charting import ETAS, PARAMETERS, SEEDS, chart, grid, heading, panels, spec, value, view
from scipy.stats import t

from creditgrid.client.errors import BadSetting
from creditgrid.client.plots.charts import charts
from creditgrid.client.plots.points import picture
from creditgrid.core.experiment import Axis


def test_points_are_means_with_students_intervals() -> None:
    found = spec(charts(view(chart()), grid())["change"])
    (points,) = found["datasets"].values()
    assert len(points) == 2 * 3
    for point in points:
        values = [value(point["series"], point["x"], seed) for seed in SEEDS]
        half = t.ppf(0.975, 2) * statistics.stdev(values) / math.sqrt(3)
        assert point["n"] == 3
        assert point["mean"] == pytest.approx(sum(values) / 3, rel=1e-12)
        assert point["low"] == pytest.approx(sum(values) / 3 - half, rel=1e-9)
        assert point["high"] == pytest.approx(sum(values) / 3 + half, rel=1e-9)
    assert [point["x"] for point in points[:3]] == list(ETAS)
    assert found["title"]["text"] == "Change"
    assert found["title"]["subtitle"] == ["mean over 3 seeds; band: 95 % interval (Student t)"]


def test_probe_seeds_are_seeds_too() -> None:
    rows = [row for probe in (7, 8) for row in grid(probe_seed=probe)]
    for i, row in enumerate(rows):
        row["change"] = float(i)
    (points,) = spec(charts(view(chart()), rows)["change"])["datasets"].values()
    assert {point["n"] for point in points} == {6}


def test_one_seed_has_no_interval() -> None:
    found = spec(charts(view(chart()), grid(seeds=[4]))["change"])
    (points,) = found["datasets"].values()
    assert all(point["n"] == 1 and "low" not in point for point in points)
    assert found["title"]["subtitle"] == ["one seed: no interval"]


def test_what_is_the_same_on_all_rows_of_a_cell_counts_once() -> None:
    rows = [row | {"layer": layer} for row in grid() for layer in range(4)]
    (points,) = spec(charts(view(chart()), rows)["change"])["datasets"].values()
    assert {point["n"] for point in points} == {3}


def test_rows_that_a_chart_cannot_tell_apart_are_refused() -> None:
    rows = [row | {"layer": layer, "change": row["change"] + layer} for row in grid() for layer in range(4)]
    with pytest.raises(BadSetting, match=r"differs between rows of one seed at eta 0\.0001"):
        charts(view(chart()), rows)
    assert charts(view(chart(series=["method", "layer"])), rows)


def test_diverged_rows_are_left_out_and_said_so() -> None:
    rows = grid()
    for row in rows[:2]:
        row |= {"diverged": True, "change": None}
    rows[-1]["change"] = None
    found = spec(charts(view(chart()), rows)["change"])
    (points,) = found["datasets"].values()
    counts = {(point["series"], point["x"]): point["n"] for point in points}
    assert counts["dfa", 1e-4] == 1
    assert counts["oracle", 1e-2] == 2
    assert counts["dfa", 1e-3] == 3
    assert found["title"]["subtitle"] == [
        "mean over 1 to 3 seeds; band: 95 % interval (Student t)",
        "2 of 18 rows diverged and are not shown",
        "1 of 18 rows has no change",
    ]


def test_what_has_no_place_on_a_log_axis_is_left_out_and_said_so() -> None:
    rows = [*grid(), *(row | {"eta": 0.0} for row in grid(["dfa"], [1])[:1])]
    rows[0:3] = [row | {"change": -1.0} for row in rows[0:3]]
    log = chart(measures=[Axis(columns=["change"], title="change", scale="log")])
    found = spec(charts(view(log), rows)["change"])
    (points,) = found["datasets"].values()
    assert len(points) == 5
    assert min(point["low"] for point in points) > 0
    assert found["title"]["subtitle"][1:] == [
        "1 of 19 rows has no place on the axis of eta and is not shown",
        "1 mean of change not above 0: no place on a log axis",
    ]


def test_columns_and_charts_without_a_value_are_left_out() -> None:
    rows = [row | {"other": None} for row in grid()]
    both = chart(measures=[Axis(columns=[name], title=name) for name in ("change", "other")])
    empty = chart(name="empty", measures=[Axis(columns=["other"], title="other")])
    drawn = charts(view(both, empty), rows)
    assert list(drawn) == ["change"]
    assert len(panels(spec(drawn["change"]))) == 1
    with pytest.raises(BadSetting, match="nothing to draw in empty: every value is null"):
        charts(view(both, empty), rows, name="empty")
    with pytest.raises(BadSetting, match="nothing to draw in change: 18 of 18 rows diverged and are not shown"):
        charts(view(both), [row | {"diverged": True} for row in rows])


def test_what_else_varies_has_panels_in_the_order_of_the_schema() -> None:
    rows = [row for mode in ("norm", "raw") for row in grid(mode=mode)]
    for row in rows:
        row["change"] *= 100 if row["mode"] == "norm" else 1
    found = spec(charts(view(chart()), rows)["change"])
    assert [heading(panel) for panel in panels(found)] == [["mode = raw"], ["mode = norm"]]
    first, second = found["datasets"].values()
    assert [100 * point["mean"] for point in first] == pytest.approx([point["mean"] for point in second])


def test_what_follows_from_the_rest_has_no_panels() -> None:
    """A parameter that has one value for each method hides nothing."""
    rows = grid(["dfa"], kappa=0.1) + grid(["oracle"], kappa=0.3)
    assert len(panels(spec(charts(view(chart()), rows)["change"]))) == 1


def test_too_many_panels_name_what_to_fix() -> None:
    rows = [row for k in range(13) for mode in ("raw", "norm") for row in grid(seeds=[1], kappa=float(k), mode=mode)]
    with pytest.raises(
        BadSetting, match=r"26 panels, more than 24: .*mode \(2 values\).*kappa \(13 values\)|kappa.*mode"
    ):
        charts(view(chart()), rows)
    found = spec(charts(view(chart()), rows, fix={"kappa": "3"})["change"])
    assert len(panels(found)) == 2
    assert spec(charts(view(chart()), rows, fix={"kappa": 3.0, "mode": "raw"})["change"])["datasets"].keys() == {
        "panel_0"
    }
    with pytest.raises(BadSetting, match="no row has kappa = 99; there are 0, 1"):
        charts(view(chart()), rows, fix={"kappa": 99})
    with pytest.raises(BadSetting, match="no column 'kapa' to fix"):
        charts(view(chart()), rows, fix={"kapa": 3})


def test_too_many_series_are_refused() -> None:
    rows = [row | {"method": f"m{i}"} for i in range(9) for row in grid(["dfa"])]
    with pytest.raises(BadSetting, match="9 series, more than the 8 that can be distinguished, along method"):
        charts(view(chart("bar")), rows)
    assert charts(view(chart()), rows)


def test_a_line_stands_at_the_first_column_that_is_not_null() -> None:
    rows = grid(["dfa"])
    for row in rows:
        row["late"], row["end"] = (None if row["eta"] == 1e-2 else row["eta"]), 5.0
    (points,) = spec(charts(view(chart(x=["late", "end"])), rows)["change"])["datasets"].values()
    assert [point["x"] for point in points] == [1e-4, 1e-3, 5.0]


def test_a_method_s_own_parameters_that_vary_are_in_the_labels_of_its_series() -> None:
    schema = PARAMETERS | {"epochs": {"x-methods": ["vec"]}, "lr": {"x-methods": ["vec", "oracle"]}}
    rows = [
        *(row | {"epochs": epochs, "lr": 0.1} for epochs in (1, 2) for row in grid(["vec"])),
        *(row | {"epochs": None, "lr": 0.2} for row in grid(["oracle"])),
    ]
    found = picture(chart(), schema, rows)
    assert list(found.series.labels) == ["oracle", "vec, epochs = 1", "vec, epochs = 2"]
    assert len(found.panels) == 1
