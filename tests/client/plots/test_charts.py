"""Charts: the numbers in them, their panels, what is left out, and the files they are written to."""

from __future__ import annotations

import builtins
import json
import math
import re
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pytest
from scipy.stats import t

from creditgrid.client.cli import main as cli
from creditgrid.client.cli import plot
from creditgrid.client.client import Client
from creditgrid.client.errors import BadSetting, NotFound, PackageMissing
from creditgrid.client.plots.charts import charts, file_name, write
from creditgrid.client.plots.labels import Values
from creditgrid.client.plots.scales import COLOURS, linear_below, powers, scaled
from creditgrid.core.experiment import Axis, Chart
from creditgrid.core.wire import ExperimentView, SweepView

PARAMETERS: dict[str, Any] = {
    "seed": {"type": "integer"},
    "probe_seed": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
    "method": {"enum": ["oracle", "vec", "dfa"]},
    "source": {"enum": ["e", "delta"]},
    "mode": {"enum": ["raw", "norm"]},
    "eta": {"type": "number"},
    "kappa": {},
}
ETAS = (1e-4, 1e-3, 1e-2)
SEEDS = (1, 2, 5)


def chart(mark: str = "line", x: Sequence[str] = ("eta",), series: Sequence[str] = ("method",), **fields: Any) -> Chart:
    """A chart of the change of the loss."""
    values: dict[str, Any] = {
        "name": "change",
        "title": "Change",
        "mark": mark,
        "x": {"columns": x, "title": "step size", "scale": "log" if mark == "line" else "linear"},
        "measures": [{"columns": ["change"], "title": "change / nats"}],
        "series": series,
    }
    return Chart(**values | fields)


def view(*declared: Chart) -> ExperimentView:
    return ExperimentView(
        name="steps",
        title="Steps",
        parameters={"properties": PARAMETERS},
        columns={},
        kinds=[],
        charts=list(declared),
    )


def value(method: str, eta: float, seed: int) -> float:
    """A number that differs for every row."""
    return -{"oracle": 3.0, "vec": 2.0, "dfa": 1.0}[method] * math.log10(eta) * (1 + 0.01 * seed**2)


def grid(
    methods: Sequence[str] = ("dfa", "oracle"), seeds: Sequence[int] = SEEDS, **fixed: Any
) -> list[dict[str, Any]]:
    """Rows of a sweep over methods, step sizes and seeds."""
    defaults = {"probe_seed": None, "source": "e", "mode": "raw", "kappa": None, "diverged": False}
    return [
        defaults | {"seed": s, "method": m, "eta": e, "change": value(m, e, s), "other": -value(m, e, s)} | fixed
        for m in methods
        for e in ETAS
        for s in seeds
    ]


def spec(drawn: Any) -> dict[str, Any]:
    found: dict[str, Any] = drawn.to_dict()
    return found


def panels(found: dict[str, Any]) -> list[dict[str, Any]]:
    """The panels of a page, in order."""
    return [panel for run in found["vconcat"] for panel in run["concat"]]


def heading(panel: dict[str, Any]) -> list[str]:
    return panel["title"]["text"] if isinstance(panel["title"], dict) else []


def encodings(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        if "encoding" in node:
            yield node["encoding"]
        for child in node.values():
            yield from encodings(child)
    elif isinstance(node, list):
        for child in node:
            yield from encodings(child)


# -- numbers --


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


def test_many_rows_are_drawn(tmp_path: Path) -> None:
    """Altair refuses tables of more than 5,000 rows that it is given itself."""
    rows = [
        row | {"eta": 1e-4 * (1 + step)} for step in range(2001) for row in grid(seeds=[1]) if row["eta"] == ETAS[0]
    ] + [row | {"method": "vec", "eta": 1e-4 * (1 + step)} for step in range(2001) for row in grid(["vec"], [1])[:1]]
    drawn = charts(view(chart()), rows)["change"]
    (points,) = spec(drawn)["datasets"].values()
    assert len(points) == 3 * 2001
    assert write(drawn, tmp_path / "many.svg", "svg").stat().st_size > 1000


# -- what is left out --


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


# -- panels --


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


def test_columns_of_a_measure_share_its_scale_and_are_named() -> None:
    both = chart(measures=[Axis(columns=["change", "other"], title="nats", scale="symlog")])
    found = spec(charts(view(both), grid())["change"])
    assert [heading(panel) for panel in panels(found)] == [["change"], ["other"]]
    domains = [e["y"]["scale"]["domain"] for e in encodings(found) if "y" in e]
    assert len(domains) == 6
    assert all(domain == domains[0] for domain in domains)
    assert domains[0][0] < -12 < 12 < domains[0][1]


def test_whole_grids_of_panels_are_aligned() -> None:
    rows = [row for mode in ("norm", "raw") for kappa in (1.0, 2.0, 3.0) for row in grid(mode=mode, kappa=kappa)]
    found = spec(charts(view(chart()), rows)["change"])
    assert [run["columns"] for run in found["vconcat"]] == [3]
    assert [heading(panel) for panel in panels(found)][2:4] == [
        ["mode = raw", "kappa = 3"],
        ["mode = norm", "kappa = 1"],
    ]


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


# -- marks --


def test_colours_are_a_methods_own() -> None:
    def colours(rows: list[dict[str, Any]]) -> dict[str, str]:
        found = next(
            e["color"]["scale"] for e in encodings(spec(charts(view(chart()), rows)["change"])) if "color" in e
        )
        return dict(zip(found["domain"], found["range"], strict=True))

    assert colours(grid(["dfa", "vec", "oracle"])) == dict(zip(["oracle", "vec", "dfa"], COLOURS, strict=False))
    assert colours(grid(["dfa"])) == {"dfa": COLOURS[2]}


def test_values_are_told_where_they_set_apart() -> None:
    methods = Values.of(
        ("method", "source"), [("dfa", "e"), ("vec", "e"), ("vec", "delta"), ("oracle", "e")], PARAMETERS
    )
    assert list(methods.labels) == ["oracle", "vec, e", "vec, delta", "dfa"]
    assert methods.title == "method, source"
    assert len(set(methods.slots)) == 4
    assert [methods.slots[i] for i in (0, 1, 3)] == [0, 1, 2]
    rules = Values.of(("rule", "kappa"), [("shift", 0.1), ("shift", 1.0), ("inner", None)], {})
    assert list(rules.labels) == ["inner", "shift, kappa = 0.1", "shift, kappa = 1"]
    plain = Values.of(("method", "source"), [("dfa", "e"), ("oracle", "e")], PARAMETERS)
    assert (list(plain.labels), plain.title) == (["oracle", "dfa"], "method")


def test_numbers_that_look_alike_are_told_apart() -> None:
    assert len(set(Values.of(("eta",), [(0.12345678,), (0.12345679,)], {}).labels)) == 2


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


def test_a_line_stands_at_the_first_column_that_is_not_null() -> None:
    rows = grid(["dfa"])
    for row in rows:
        row["late"], row["end"] = (None if row["eta"] == 1e-2 else row["eta"]), 5.0
    (points,) = spec(charts(view(chart(x=["late", "end"])), rows)["change"])["datasets"].values()
    assert [point["x"] for point in points] == [1e-4, 1e-3, 5.0]


def test_scales_hold_their_data() -> None:
    values = [-0.4, 3e-5, 0.002, -1e-4]
    for kind in ("linear", "symlog"):
        found = scaled(kind, values)
        assert found.low < min(values) < max(values) < found.high
    ticks = scaled("symlog", values).ticks
    assert ticks is not None
    assert 0.0 in ticks
    assert ticks == sorted(ticks)
    assert powers(3e-5, 0.2) == [1e-4, 1e-3, 1e-2, 1e-1]
    assert len(powers(1e-30, 1.0)) <= 7
    assert linear_below([0.0]) == 1.0
    assert 1e-5 <= linear_below(values) <= 0.04


# -- errors --


def test_there_is_nothing_to_draw() -> None:
    with pytest.raises(BadSetting, match="steps declares no charts"):
        charts(view(), grid())
    with pytest.raises(BadSetting, match="no rows to draw yet"):
        charts(view(chart()), [])
    with pytest.raises(BadSetting, match="steps has no chart 'nope'; it has change"):
        charts(view(chart()), grid(), name="nope")
    with pytest.raises(BadSetting, match="steps cannot be used: its package is gone"):
        charts(view(chart()).model_copy(update={"problem": "its package is gone"}), grid())
    with pytest.raises(BadSetting, match="the column nowhere, which the rows do not have"):
        charts(view(chart(series=["nowhere"])), grid())
    with pytest.raises(BadSetting, match="holds 'raw': not a number"):
        charts(view(chart(measures=[Axis(columns=["mode"], title="mode")])), grid())


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    there = builtins.__import__

    def absent(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "altair":
            raise ModuleNotFoundError("No module named 'altair'", name="altair")
        return there(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(PackageMissing, match=r'charts need altair: pip install "creditgrid\[plots\]"'):
        charts(view(chart()), grid())


# -- files --

MAGIC = {"png": b"\x89PNG\r\n\x1a\n", "pdf": b"%PDF-", "svg": b"<svg", "html": b"<!DOCTYPE html>"}


@pytest.mark.parametrize("format", list(MAGIC))
def test_every_format_is_written(tmp_path: Path, format: str) -> None:
    path = tmp_path / f"chart.{format}"
    assert write(charts(view(chart()), grid())["change"], path, format) == path
    data = path.read_bytes()
    assert data.startswith(MAGIC[format])
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    if format == "svg":
        assert "change / nats" in data.decode()
    if format == "html":
        assert not re.search(r"<(script|link)[^>]*(src|href)\s*=", data.decode())
        assert "vega" in data.decode()


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match="'gif' is not a format of charts: use one of png, svg, pdf, html"):
        write(charts(view(chart()), grid())["change"], tmp_path / "chart.gif", "gif")
    assert list(tmp_path.iterdir()) == []


def test_names_stay_in_their_folder() -> None:
    assert file_name("s1", "../a b/c") == "s1-_a_b_c"


# -- a sweep, and the command line --


def serve(rows: list[dict[str, Any]], experiment: ExperimentView) -> httpx.MockTransport:
    """A service that has one sweep."""
    sweep = SweepView.model_validate(
        {
            "id": "s1",
            "name": "one",
            "experiment": "steps",
            "state": "succeeded",
            "priority": 0,
            "cells": 18,
            "counts": {},
            "created_at": "2026-01-02T03:04:05Z",
        }
    )
    table = pa.Table.from_pylist(rows) if rows else pa.table({"seed": pa.array([], pa.int64())})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    answers = {
        "/v1/sweeps/s1": httpx.Response(200, json=json.loads(sweep.model_dump_json())),
        "/v1/sweeps/s1/results": httpx.Response(200, content=sink.getvalue().to_pybytes()),
        "/v1/experiments/steps": httpx.Response(200, json=json.loads(experiment.model_dump_json())),
    }
    missing = httpx.Response(404, json={"title": "Not Found", "status": 404, "detail": "there is no such sweep"})
    return httpx.MockTransport(lambda request: answers.get(request.url.path, missing))


def test_a_sweep_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bars = chart("bar", ["eta"], name="bars")
    with Client("http://service", transport=serve(grid(), view(chart(), bars))) as client:
        sweep = client.sweep("s1")
        assert list(sweep.charts()) == ["change", "bars"]
        assert sweep.plot(tmp_path / "new/folder", "svg") == [
            tmp_path / "new/folder/s1-change.svg",
            tmp_path / "new/folder/s1-bars.svg",
        ]
        monkeypatch.chdir(tmp_path)
        assert sweep.plot(format="html", name="bars", fix={"method": "dfa"}) == [Path("s1-bars.html")]
        assert (tmp_path / "s1-bars.html").is_file()
        with pytest.raises(BadSetting, match="'gif' is not a format"):
            sweep.plot(tmp_path / "none", "gif")  # type: ignore[arg-type]
        assert not (tmp_path / "none").exists()


def test_a_service_without_the_experiment(tmp_path: Path) -> None:
    other = view(chart())
    with Client("http://service", transport=serve([], other)) as client:
        with pytest.raises(BadSetting, match="no rows"):
            client.sweep("s1").plot(tmp_path)
        with pytest.raises(NotFound):
            client.sweep("s2")


def test_the_command_prints_what_it_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    transport = serve(grid(), view(chart(), chart("bar", ["eta"], name="bars")))
    monkeypatch.setattr(plot, "open_client", lambda url, token: Client("http://service", transport=transport))
    folder = str(tmp_path / "figures")
    assert cli.main(["plot", "s1", "--out", folder, "--format", "svg"]) == 0
    assert capsys.readouterr().out.splitlines() == [f"{folder}/s1-change.svg", f"{folder}/s1-bars.svg"]
    assert cli.main(["plot", "s1", "--out", folder, "--chart", "bars", "--fix", "eta=1e-3", "--fix", "seed=1"]) == 0
    assert capsys.readouterr().out == f"{folder}/s1-bars.png\n"
    assert (tmp_path / "figures/s1-bars.png").read_bytes().startswith(MAGIC["png"])
    for arguments, code, message in (
        (["s1", "--chart", "nope"], 2, "steps has no chart 'nope'"),
        (["s1", "--fix", "eta"], 2, "--fix eta: give NAME=VALUE"),
        (["s2"], 4, "there is no such sweep"),
    ):
        assert cli.main(["plot", *arguments, "--out", folder]) == code
        assert message in capsys.readouterr().err
