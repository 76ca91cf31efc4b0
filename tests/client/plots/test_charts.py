"""Charts of a sweep: what cannot be drawn, and the files they are written to."""

from __future__ import annotations

import builtins
import re
from pathlib import Path
from typing import Any

import pytest
from charting import ETAS, MAGIC, chart, grid, serve, spec, view

from creditgrid.client.client import Client
from creditgrid.client.errors import BadSetting, NotFound, PackageMissing
from creditgrid.client.plots.charts import charts, file_name, write
from creditgrid.core.experiment import Axis


def test_many_rows_are_drawn(tmp_path: Path) -> None:
    """Altair refuses tables of more than 5,000 rows that it is given itself."""
    rows = [
        row | {"eta": 1e-4 * (1 + step)} for step in range(2001) for row in grid(seeds=[1]) if row["eta"] == ETAS[0]
    ] + [row | {"method": "vec", "eta": 1e-4 * (1 + step)} for step in range(2001) for row in grid(["vec"], [1])[:1]]
    drawn = charts(view(chart()), rows)["change"]
    (points,) = spec(drawn)["datasets"].values()
    assert len(points) == 3 * 2001
    assert write(drawn, tmp_path / "many.svg", "svg").stat().st_size > 1000


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
