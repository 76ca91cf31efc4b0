"""The service process with its ledger in PostgreSQL. Its cells compute nothing, in threads of the service."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pyarrow.dataset as pads
import pytest
from deltalake import DeltaTable
from postgresql import Database, fresh_database

pytestmark = pytest.mark.slow
PLUGIN = Path(__file__).resolve().parent.parent / "plugin"
CELLS = 200


class Service:
    """A service process with its own data directory."""

    def __init__(self, folder: Path, url: str, data: str = "data") -> None:
        self.data, self.log = folder / data, folder / f"{data}.log"
        port_file = folder / f"{data}.url"
        port_file.unlink(missing_ok=True)
        options = ["--port", "0", "--port-file", str(port_file), "--data-dir", str(self.data), "--runner", "local"]
        environment = os.environ | {"PYTHONPATH": str(PLUGIN), "CREDITGRID_DATABASE_URL": url}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "creditgrid.service", "serve", *options], env=environment, stdout=log, stderr=log
            )
        wait_for(lambda: port_file.exists() or self.process.poll() is not None)
        self.url = port_file.read_text().strip() if port_file.exists() else ""

    def submit(self, name: str, cells: int) -> str:
        numbers = list(range(cells))  # each cell is a call
        axes = {"x": numbers, "group": numbers}
        spec = {"name": name, "experiment": "noop", "axes": axes, "zip": [["x", "group"]]}
        return str(httpx.post(f"{self.url}/v1/sweeps", json=spec).raise_for_status().json()["id"])

    def sweep(self, sweep: str) -> dict[str, Any]:
        found: dict[str, Any] = httpx.get(f"{self.url}/v1/sweeps/{sweep}").raise_for_status().json()
        return found

    def finish(self, sweep: str) -> dict[str, Any]:
        wait_for(lambda: self.sweep(sweep)["state"] not in ("pending", "running"))
        return self.sweep(sweep)

    def rows(self) -> Counter[int]:
        """How many rows of the table each cell's x has."""
        dataset: pads.Dataset = DeltaTable(str(self.data / "results")).to_pyarrow_dataset()
        return Counter(dataset.to_table(columns=["x"])["x"].to_pylist())

    def log_text(self) -> str:
        return self.log.read_text()


def wait_for(condition: Callable[[], bool], within: float = 120.0) -> None:
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


Start = Callable[..., Service]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts services, and kills those that still run at the end."""
    started: list[Service] = []

    def start_service(url: str, data: str = "data") -> Service:
        started.append(Service(tmp_path, url, data))
        return started[-1]

    yield start_service
    for service in started:
        service.process.kill()
        service.process.wait()


@pytest.fixture
def server() -> Iterator[Database]:
    with fresh_database() as found:
        yield found


def test_a_sweep_outlives_its_service_and_its_connections(start: Start, server: Database) -> None:
    service = start(server.url)
    sweep = service.submit("n", CELLS)
    wait_for(lambda: service.sweep(sweep)["counts"].get("succeeded", 0) > 0)
    service.process.kill()
    service.process.wait()

    service = start(server.url)
    server.cut()
    found = service.finish(sweep)
    assert (found["state"], found["counts"]) == ("succeeded", {"succeeded": CELLS}), service.log_text()
    again = service.finish(service.submit("again", CELLS))
    assert again["counts"] == {"cached": CELLS}
    assert service.rows() == Counter(range(CELLS))
    service.process.terminate()
    assert service.process.wait(120) == 0
    assert "Traceback" not in service.log_text()


def test_requests_while_the_server_is_away(start: Start, server: Database) -> None:
    service = start(server.url)
    with server.away():
        response = httpx.get(f"{service.url}/v1/sweeps", timeout=30)
        assert response.status_code == 503
        assert response.headers["content-type"] == "application/problem+json"
        assert int(response.headers["retry-after"]) > 0
    wait_for(lambda: httpx.get(f"{service.url}/v1/sweeps", timeout=30).status_code == 200)
    assert service.finish(service.submit("n", 3))["counts"] == {"succeeded": 3}


def test_two_services_on_one_database(start: Start, server: Database) -> None:
    first = start(server.url)
    second = start(server.url, data="other")
    assert second.process.wait(120) == 2
    assert f"in use by the service with process id {first.process.pid}" in second.log_text()
    assert len(second.log_text().splitlines()) == 1
    assert httpx.get(f"{first.url}/healthz").status_code == 200


def test_results_of_another_data_directory(start: Start, server: Database) -> None:
    first = start(server.url)
    first.finish(first.submit("n", 3))
    first.process.terminate()
    first.process.wait(120)
    second = start(server.url, data="other")
    assert second.process.wait(120) == 1
    assert "belong to another ledger" in second.log_text()
    assert len(second.log_text().splitlines()) == 1
