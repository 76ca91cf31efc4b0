"""The README's estimator of one's own, by the three ways, run as the page prints it: through HTTP and Ray."""

from __future__ import annotations

import linecache
import os
import re
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.hostile_code import HOSTILE

from creditgrid.client import Client
from creditgrid.client.errors import InvalidRequest
from creditgrid.core.errors import CodeError

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parent.parent
SECTION = (ROOT / "README.md").read_text().split("## Your own method\n")[1].split("\n## ")[0]
BLOCKS = [(language, text) for language, text in re.findall(r"```(\w+)\n(.*?)```\n", SECTION, re.DOTALL)]
FILE, CELL = (text for language, text in BLOCKS if language == "python")
(SPEC,) = (text for language, text in BLOCKS if language == "yaml")
(PROJECT,) = (text for language, text in BLOCKS if language == "toml")
SERVE, SUBMIT, PACKAGE = (text for language, text in BLOCKS if language == "sh")


def test_the_estimator_has_fewer_than_60_lines() -> None:
    assert len(FILE.splitlines()) < 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("mine")
    (made / "linear.py").write_text(FILE)
    (made / "linear.yaml").write_text(SPEC)
    (made / "pyproject.toml").write_text(PROJECT)
    return made


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    commands = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {
        "PATH": commands,
        "CREDITGRID_PORT": str(port),
        "CREDITGRID_URL": f"http://127.0.0.1:{port}",
        "CREDITGRID_CPUS": str(max(2, os.cpu_count() or 2)),
    }


def run(script: str, folder: Path, environment: dict[str, str]) -> str:
    command = ["sh", "-e", "-c", script]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def service(folder: Path, environment: dict[str, str]) -> Iterator[str]:
    """The service, started as the page says."""
    with (folder / "service.log").open("wb") as log:
        process = subprocess.Popen(
            ["sh", "-c", f"exec {SERVE.strip()}"], cwd=folder, env=environment, stdout=log, stderr=log
        )
        try:
            deadline = time.monotonic() + 120
            while not ready(environment["CREDITGRID_URL"]):
                assert process.poll() is None, (folder / "service.log").read_text()[-3000:]
                assert time.monotonic() < deadline
                time.sleep(0.2)
            yield environment["CREDITGRID_URL"]
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0


def ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz").is_success
    except httpx.HTTPError:
        return False


@pytest.fixture(scope="module")
def by_file(service: str, folder: Path, environment: dict[str, str]) -> list[dict[str, Any]]:
    """The rows of the sweep that brings a file."""
    said = run(SUBMIT, folder, environment)
    assert "FAILED" not in said
    figures = [path for path in folder.rglob("*.svg") if "<svg" in path.read_text()[:500]]
    assert any(path.stem.endswith("loss-change") for path in figures)
    with Client(service) as client:
        (sweep,) = client.sweeps()
        return sweep.results().table.to_pylist()


def test_a_file_is_compared_with_the_five(by_file: list[dict[str, Any]]) -> None:
    methods = {"linear", "vec", "scalar_cb", "state_bridge", "dfa", "oracle_bp"}
    assert {row["method"] for row in by_file} == methods
    assert len(by_file) == 3 * len(methods) * 7
    assert not any(row["diverged"] for row in by_file)
    assert all(1 <= row["effective_rank"] <= 32 for row in by_file)
    best = {method: min(row["delta_loss_same"] for row in by_file if row["method"] == method) for method in methods}
    assert best["linear"] < best["dfa"] < 0  # a linear map of e and h finds more of the gradient than a random one


def test_a_notebook_computes_the_same(
    service: str, by_file: list[dict[str, Any]], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("CREDITGRID_URL", service)
    notebook: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate((FILE, CELL)):
        name = f"<cell {number}>"  # as a kernel does, so that the source is known
        linecache.cache[name] = len(cell), None, cell.splitlines(keepends=True), name
        exec(compile(cell, name, "exec"), notebook)
    assert notebook["sweep"].view.counts == {"cached": 105, "succeeded": 21}  # the five are not computed again
    rows = [row for row in notebook["rows"].table.to_pylist() if row["method"] == "linear"]
    mine = [row for row in by_file if row["method"] == "linear"]
    assert [row["delta_loss_same"] for row in rows] == [row["delta_loss_same"] for row in mine]


def test_hostile_files_are_refused_and_the_service_stays_up(
    service: str, by_file: list[dict[str, Any]], folder: Path
) -> None:
    with Client(service) as client:
        for code in HOSTILE:
            if code.name in ("loops", "raises_later"):  # the one waits for its limit, the other is as `shapes`
                continue
            place = folder / code.name
            place.mkdir()
            for name, content in code.files.items():
                (place / name).write_bytes(content)
            with pytest.raises((InvalidRequest, CodeError)) as caught:  # the second before it is sent
                client.submit(str(folder / "linear.yaml"), code=place / "mine.py")
            assert re.search(code.said, str(caught.value)), (code.name, str(caught.value))
        assert httpx.get(f"{service}/healthz").is_success
        assert {sweep.view.name for sweep in client.sweeps()} == {"a linear estimator"}
        assert client.submit(str(folder / "linear.yaml"), code=folder / "linear.py").view.state == "cached"


def test_a_package_registers_the_same_file(folder: Path, environment: dict[str, str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=120)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:  # what pip installs, without pip's search for dependencies
        packed.extractall(tmp_path / "site")
    install, *commands = PACKAGE.splitlines()
    assert install.startswith("pip install .")
    elsewhere = tmp_path / "work"
    elsewhere.mkdir()
    (elsewhere / "linear.yaml").write_text(SPEC)
    own = {name: value for name, value in environment.items() if not name.startswith("CREDITGRID_")}
    said = run("\n".join(commands), elsewhere, own | {"PYTHONPATH": str(tmp_path / "site")})
    assert "ok      credits are finite" in said
    assert "linear" in said.split("Best step size by delta_loss_same")[1]
