"""Commands about results and artifacts."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from charting import MAGIC, chart, grid, serve, view

from creditgrid.client.cli import data
from creditgrid.client.cli import main as cli
from creditgrid.client.client import Client

Run = Callable[..., tuple[int, str, str]]


def test_sql(connected, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary) -> None:
    code = cli.main(["sql", "select * from results"])
    out = capfdbinary.readouterr().out.decode()
    assert code == 0
    assert [line.split() for line in out.splitlines()][-3:-1] == [["dfa", "0.001", "1"], ["vec", "0.01", "–"]]
    assert cli.main(["sql", "select 1", "-o", "csv"]) == 0
    assert capfdbinary.readouterr().out == b"rows as text/csv"
    target = tmp_path / "rows.parquet"
    assert cli.main(["sql", "select 1", "--file", str(target)]) == 0
    assert target.read_bytes() == b"rows as application/vnd.apache.parquet"
    assert capfdbinary.readouterr().out == b""
    monkeypatch.setattr(sys, "stdin", io.StringIO("select 2"))
    assert cli.main(["sql", "-", "-o", "json"]) == 0
    assert json.loads(connected.posts("/v1/query")[-1][1]) == {"sql": "select 2"}


def test_sql_output_that_fits_nowhere(connected, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("sql", "select 1", "-o", "table", "--file", str(tmp_path / "a.csv"))[0] == 2
    assert run("sql", "select 1", "--file", str(tmp_path / "a.xlsx"))[0] == 2
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    code, _, err = run("sql", "select 1", "-o", "parquet")
    assert code == 2
    assert "not for a terminal" in err
    assert connected.log == []


def test_export_and_artifact(connected, run: Run, tmp_path: Path) -> None:
    connected.add()
    rows, tensors = tmp_path / "rows.csv", tmp_path / "a.safetensors"
    code, out, err = run("export", "s1", "--file", str(rows))
    assert (code, out) == (0, "")
    assert rows.read_bytes() == b"rows as text/csv"
    assert "16 bytes" in err
    assert run("export", "s1", "--file", str(tmp_path / "rows.doc"))[0] == 2
    code, _, err = run("curves", "s1", "--file", str(rows.with_name("curves.csv")))
    assert (code, "curves.csv" in err) == (0, True)
    assert run("curves", "s1", "--file", str(tmp_path / "curves.doc"))[0] == 2
    code, _, err = run("export", "s1", "--file", str(tmp_path / "none" / "rows.csv"))
    assert code == 2
    assert "No such file or directory" in err
    assert json.loads(run("artifact", "abc")[1]) == {"key": "abc", "kind": "train"}
    assert run("artifact", "abc", "--file", str(tensors))[0] == 0
    assert tensors.stat().st_size > 0


def test_plot_prints_what_it_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    transport = serve(grid(), view(chart(), chart("bar", ["eta"], name="bars")))
    monkeypatch.setattr(data, "open_client", lambda url, token: Client("http://service", transport=transport))
    folder = str(tmp_path / "figures")
    assert cli.main(["plot", "s1", "--out", folder, "--format", "svg"]) == 0
    assert capsys.readouterr().out.splitlines() == [f"{folder}/s1-change.svg", f"{folder}/s1-bars.svg"]
    assert cli.main(["plot", "s1", "--out", folder, "--chart", "bars", "--fix", "eta=1e-3", "--fix", "seed=1"]) == 0
    assert capsys.readouterr().out == f"{folder}/s1-bars.png\n"
    assert cli.main(["plot", "s1", "--out", folder, "--chart", "curves"]) == 2
    assert "there are no curves to draw yet" in capsys.readouterr().err
    assert (tmp_path / "figures/s1-bars.png").read_bytes().startswith(MAGIC["png"])
    for arguments, code, message in (
        (["s1", "--chart", "nope"], 2, "steps has no chart 'nope'"),
        (["s1", "--fix", "eta"], 2, "--fix eta: give NAME=VALUE"),
        (["s2"], 4, "there is no such sweep"),
    ):
        assert cli.main(["plot", *arguments, "--out", folder]) == code
        assert message in capsys.readouterr().err
