"""The whole way, as a user has it: a real service process, real HTTP, real Ray, real images.

A grid of 3 seeds × 4 methods × 3 ranges × 2 norms × 7 step sizes with 1 training and 1 fitting epoch on CIFAR-10 is
submitted, every row is computed again from its downloaded artifacts by code that shares nothing with ours, and the
second submission runs nothing.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import recompute

from creditgrid.client import Client

PLUGIN = Path(__file__).parent / "plugin"
METHODS = ["dfa", "scalar_cb", "vec", "oracle_bp"]


class Service:
    """A service process on a data directory; it can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = ""
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        port_file = self.folder / "url"
        port_file.unlink(missing_ok=True)
        command = [sys.executable, "-m", "creditgrid.service", "serve", "--port", "0", "--port-file", str(port_file)]
        environment = os.environ | {"PYTHONPATH": str(PLUGIN)}
        with (self.folder / "service.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "--data-dir", str(self.folder / "data")], env=environment, stdout=log, stderr=log
            )
        self._await(port_file.exists)
        self.url = port_file.read_text().strip()
        self._await(lambda: httpx.get(f"{self.url}/readyz").status_code == 200)

    def kill(self) -> None:
        """As the power would."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> int:
        """As Ctrl-C would; returns the exit status."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(90)

    def _await(self, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 180
        while not done():
            assert self._process is not None
            assert self._process.poll() is None, (self.folder / "service.log").read_text()[-4000:]
            assert time.monotonic() < deadline, (self.folder / "service.log").read_text()[-4000:]
            time.sleep(0.1)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    running = Service(tmp_path_factory.mktemp("service"))
    running.start()
    yield running
    assert running.stop() == 0


def grid(dataset: Path) -> dict[str, Any]:
    return {
        "name": "every method, range, norm and step size",
        "experiment": "linesearch",
        "fixed": {"dataset": str(dataset.resolve()), "train_epochs": 1, "fit_epochs": 1},
        "axes": {
            "seed": [42, 43, 44],
            "method": METHODS,
            "update_range": ["last1", "last2", "all"],
            "norm_mode": ["raw", "norm"],
            "eta": {"logspace": [1e-5, 1e-2, 7]},
        },
    }


@pytest.mark.timeout(1500)
def test_every_row_of_a_cifar_grid_is_what_its_artifacts_say(service: Service, cifar_dir: Path) -> None:
    spec = grid(cifar_dir)
    with Client(service.url) as client:
        plan = client.plan(spec)
        new = {kind: view.new for kind, view in plan.tasks.items()}
        assert new == {"data": 1, "probe": 3, "feedback": 3, "train": 3, "fit": 6}
        assert (plan.cells.new, plan.groups) == (504, 3)

        sweep = client.submit(spec).wait(timeout=1200)
        assert sweep.view.counts == {"succeeded": 504}
        rows = sweep.results().table.to_pylist()
        assert len({row["cell"] for row in rows}) == len(rows) == 504
        assert not any(row["diverged"] for row in rows)

        downloaded: dict[str, Any] = {}
        for row in rows:
            parents = json.loads(row["parents"])
            for key in parents.values():
                if key not in downloaded:
                    downloaded[key] = client.artifact(key)
            extra = parents.get("estimator") or parents.get("feedback")
            wanted = recompute.linesearch_row(
                row, downloaded[parents["checkpoint"]], downloaded[parents["probe"]], downloaded.get(extra)
            )
            for name, value in wanted.items():
                floor = 1e-6 if name.startswith("delta") else 0.0
                assert math.isclose(row[name], value, rel_tol=1e-5, abs_tol=floor), (name, row[name], value, row)

        summary = sweep.summary()
        assert summary.complete
        assert [verdict.name for verdict in summary.verdicts] == ["oracle descends"]
        best = min(rows, key=lambda row: (row["delta_loss_same"], row["eta"]))
        (found,) = client.query("SELECT cell FROM results ORDER BY delta_loss_same, eta LIMIT 1").table.to_pylist()
        assert found["cell"] == best["cell"]

        began = time.perf_counter()
        again = client.submit(spec).wait(timeout=60)
        assert time.perf_counter() - began < 2.0
        assert again.view.counts == {"cached": 504}
        assert again.state == "cached"
        assert again.results().table.equals(sweep.results().table)
        assert client.query("SELECT count(*) AS n FROM results WHERE experiment = 'linesearch'").table[
            "n"
        ].to_pylist() == [504]


@pytest.mark.timeout(300)
def test_a_failing_group_names_its_cause_and_leaves_the_rest(service: Service) -> None:
    spec = {
        "name": "some fail",
        "experiment": "noop",
        "axes": {"x": [1, 2, 3], "behaviour": ["ok", "raise", "nan"]},
        "zip": [],
        "exclude": [{"x": 1, "behaviour": "raise"}, {"x": 2, "behaviour": "raise"}],
        "fixed": {"group": 7},
        "include": [{"x": 100, "group": 8}, {"x": 101, "group": 8, "behaviour": "nan"}],
    }
    with Client(service.url) as client:
        sweep = client.submit(spec).wait(timeout=120, raise_on_failure=False)
        assert sweep.state == "failed"
        assert sweep.view.counts == {"failed": 7, "succeeded": 2}
        (failure,) = sweep.failures()
        assert failure.count == 7
        assert "told to raise at x = 3" in failure.cause
        assert "creditgrid_noop.py" in failure.traceback
        assert {cell.error for cell in sweep.cells() if cell.state == "failed"} == {failure.cause}
        rows = {row["x"]: row for row in sweep.results().table.to_pylist()}
        assert rows[100]["twice"] == 200.0
        assert rows[100]["diverged"] is False
        assert rows[101]["twice"] is None
        assert rows[101]["diverged"] is True
        assert [cell.params["x"] for cell in sweep.cells() if cell.diverged] == [101]


@pytest.mark.timeout(300)
def test_a_crashed_worker_is_tried_again_and_then_named(service: Service) -> None:
    spec = {
        "name": "crash",
        "experiment": "noop",
        "axes": {"x": [1], "behaviour": ["crash"]},
        "retry": {"max": 1, "backoff_s": 0.1},
    }
    with Client(service.url) as client:
        sweep = client.submit(spec).wait(timeout=120, raise_on_failure=False)
        assert sweep.view.counts == {"failed": 1}
        (failure,) = sweep.failures()
        assert failure.attempt == 2
        assert "worker" in failure.cause


@pytest.mark.timeout(600)
def test_a_killed_service_goes_on_where_it_was(tmp_path: Path) -> None:
    """kill -9 in the middle: what was through stays, what was in flight runs again, each cell has one row."""
    service = Service(tmp_path)
    service.start()
    slow = {
        "name": "slow and fast",
        "experiment": "noop",
        "axes": {"x": {"range": [40]}},
        "include": [{"x": 1000, "behaviour": "sleep", "group": 1}],
    }
    with Client(service.url) as client:
        sweep = client.submit(slow).id
        deadline = time.monotonic() + 120
        while client.sweep(sweep).view.counts.get("succeeded", 0) < 40 or not client.sweep(sweep).view.active:
            assert time.monotonic() < deadline
            time.sleep(0.2)
    service.kill()
    service.start()
    with Client(service.url) as client:
        resumed = client.sweep(sweep)
        assert resumed.view.counts["succeeded"] >= 40
        resumed.wait(timeout=240)
        rows = client.query("SELECT cell, count(*) AS n FROM results GROUP BY cell").table.to_pylist()
        assert [row["n"] for row in rows] == [1] * 41
    assert service.stop() == 0
