"""The command line, its service, and a spec file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from creditgrid.client.cli import main as cli

Run = Callable[..., tuple[int, str, str]]
SPEC = "name: grid\nexperiment: linesearch\nfixed: {dataset: digits}\naxes: {eta: [1e-5, 1e-3]}\n"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], pauses: list[float]) -> Run:
    """Runs the command line and returns its exit code, standard output and standard error."""

    def call(*arguments: str) -> tuple[int, str, str]:
        code = cli.main(arguments)
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture
def connected(service, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CREDITGRID_URL", service.url)
    return service


@pytest.fixture
def spec(tmp_path: Path) -> str:
    path = tmp_path / "grid.yaml"
    path.write_text(SPEC)
    return str(path)
