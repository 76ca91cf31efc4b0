"""The command that draws charts."""

from __future__ import annotations

from pathlib import Path

import pytest
from charting import MAGIC, chart, grid, serve, view

from creditgrid.client.cli import main as cli
from creditgrid.client.cli import plot
from creditgrid.client.client import Client


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
