"""The whole way, as a user has it: a real service process, real HTTP, real Ray, real images.

A grid of 3 seeds × 4 methods × 3 ranges × 2 norms × 7 step sizes with 1 training and 1 fitting epoch on CIFAR-10 is
submitted, every row is computed again from its downloaded artifacts by code that shares nothing with ours, and the
second submission runs nothing.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import creditgrid_noop as noop
import httpx
import numpy as np
import pytest
import recompute
from safetensors.numpy import load

from creditgrid.client import Client
from creditgrid.core.wire import SweepView

pytestmark = pytest.mark.slow
PLUGIN = Path(__file__).parent / "plugin"
METHODS = ["dfa", "scalar_cb", "vec", "oracle_bp"]


class Service:
    """A service process on a data directory; it can be killed and started again."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder, self.gate, self.options = folder, folder / "gate", options
        self.saves = folder / "data" / "artifacts" / "saves"
        self.url = ""
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        port_file = self.folder / "url"
        port_file.unlink(missing_ok=True)
        command = [sys.executable, "-m", "creditgrid.service", "serve", "--port", "0", "--port-file", str(port_file)]
        command += ["--cpus", str(max(2, os.cpu_count() or 2)), *self.options]
        environment = os.environ | {"PYTHONPATH": str(PLUGIN), noop.GATE: str(self.gate)}
        with (self.folder / "service.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "--data-dir", str(self.folder / "data")], env=environment, stdout=log, stderr=log
            )
        self._await(port_file.exists)
        self.url = port_file.read_text().strip()
        self._await(lambda: httpx.get(f"{self.url}/readyz").status_code == 200)

    def workers(self, kind: str) -> list[int]:
        """The processes of its cluster that compute a call of this kind."""
        found = []
        for place in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it has ended, or is someone else's
                ours = str(self.gate).encode() in (place / "environ").read_bytes()
                if ours and (place / "cmdline").read_bytes().startswith(f"ray::creditgrid:{kind}-".encode()):
                    found.append(int(place.name))
        return found

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
    assert not list(running.saves.glob("*"))


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

        hold(client, "linesearch", rows)

        summary = sweep.summary()
        assert summary.complete
        assert [verdict.name for verdict in summary.verdicts] == ["oracle descends"]
        best = min(rows, key=lambda row: (row["delta_loss_same"], row["eta"]))
        (found,) = client.query("SELECT cell FROM results ORDER BY delta_loss_same, eta LIMIT 1").table.to_pylist()
        assert found["cell"] == best["cell"]

        again = client.submit(spec).wait(timeout=60)
        assert again.view.counts == {"cached": 504}
        assert again.state == "cached"
        assert again.results().table.equals(sweep.results().table)
        assert client.query("SELECT count(*) AS n FROM results WHERE experiment = 'linesearch'").table[
            "n"
        ].to_pylist() == [504]


def hold(client: Client, experiment: str, rows: list[dict[str, Any]]) -> None:
    """Compute every cell again from its downloaded artifacts, and hold its rows against that."""
    by_cell: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        by_cell[row["cell"]].append(row)
    downloaded: dict[str, Any] = {}
    for some in by_cell.values():
        parents = json.loads(some[0]["parents"])
        for key in parents.values():
            if key not in downloaded:
                downloaded[key] = client.artifact(key)
        artifacts = {role: downloaded[key] for role, key in parents.items()}
        worst = recompute.agrees(recompute.expected_rows(experiment, some[0], artifacts), some)
        assert worst.ratio <= 1, (worst, some[0])


def program(dataset: Path) -> dict[str, dict[str, Any]]:
    """A sweep of every experiment, on one training and its estimators; small, because recomputing is slow."""
    small = {"num_blocks": 2, "d_hidden": 64, "batch_size": 64}
    fixed = {"dataset": str(dataset.resolve()), "train_epochs": 1, "fit_epochs": 1, "seed": 42, **small}
    step = {"norm_mode": "norm", "eta": 1e-3}
    sources = {
        "method": ["oracle_bp", "dfa", "vec", "scalar_cb", "scalar_cb", "state_bridge"],
        "cb_source": ["e_T", "e_T", "e_T", "e_T", "delta_L", "e_T"],
    }
    return {
        "credit_recovery": {"fixed": fixed, "axes": sources, "zip": [["method", "cb_source"]]},
        "exploitability": {
            "fixed": fixed,
            "axes": {
                "method": ["oracle_bp", "dfa", "vec"],
                "rule": ["inner_product", "target_shift", "cosine"],
                "kappa": [None, 0.3, None],
            },
            "zip": [["rule", "kappa"]],
            "include": [
                {"method": "scalar_cb", "k": 2, "clamp": None, "norm_mode": "raw"},
                {"method": "state_bridge", "eval": "same", "eta": 1e-2},
                {"method": "vec", "step_batch_size": 64, "step_weight_decay": 0.1, "step_noise": 0.01},
            ],
        },
        "snapshot_time": {
            "fixed": fixed,
            "axes": {"checkpoint_epoch": [0, 1], "method": ["oracle_bp", "dfa", "vec"]},
            "exclude": [{"checkpoint_epoch": 0, "method": "vec"}],
        },
        "dynamics": {
            "fixed": {name: value for name, value in fixed.items() if name != "fit_epochs"},
            "axes": {"train_rule": ["bp", "dfa"]},
        },
        "linesearch": {
            "fixed": fixed | step,
            "axes": {"method": ["dfa", "vec", "scalar_cb", "state_bridge"]},
            "include": [
                {"method": "oracle_bp", "oracle_reduction": "sum", "norm_mode": "raw", "eta": 1e-5},
                {"method": "vec", "step_batch_size": 32, "step_weight_decay": 0.01, "step_noise": 0.1},
            ],
        },
    }


@pytest.mark.timeout(1500)
def test_every_experiment_shares_what_is_there_and_is_what_its_artifacts_say(service: Service, cifar_dir: Path) -> None:
    specs = {name: {"name": name, "experiment": name, **spec} for name, spec in program(cifar_dir).items()}
    lines = {"linesearch": 6, "credit_recovery": 6 * 2, "exploitability": 12, "snapshot_time": 5, "dynamics": 2 * 2 * 3}
    with Client(service.url) as client:
        client.submit(specs["linesearch"]).wait(timeout=1200)
        recovery = {kind: view.new for kind, view in client.plan(specs["credit_recovery"]).tasks.items()}
        # Only what is new is fitted: scalar_cb by the terminal gradient.
        assert recovery == {"data": 0, "probe": 0, "feedback": 0, "train": 0, "fit": 1}

        sweeps = {name: client.submit(spec) for name, spec in specs.items()}
        for name, sweep in sweeps.items():
            sweep.wait(timeout=1200)
            rows = sweep.results().table.to_pylist()
            assert len(rows) == lines[name]
            assert not any(row["diverged"] for row in rows)
            hold(client, name, rows)
            assert sweep.summary().complete
        again = {name: client.submit(spec).wait(timeout=60).state for name, spec in specs.items()}
        assert set(again.values()) == {"cached"}


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
        assert "asked to raise at x = 3" in failure.cause
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


TRAINING = {"dataset": "digits", "seed": 5, "d_hidden": 64, "batch_size": 64, "train_epochs": 160, "lr": 1e-3}


@dataclass(frozen=True)
class Interrupted:
    """Two sweeps that were in flight when their service was killed, and what was seen when it had started again."""

    noop: str
    training: str
    saved: int
    """The last epoch that was saved before."""
    epochs: list[int]
    """Those that were reported after."""


@pytest.fixture(scope="module")
def interrupted(service: Service) -> Interrupted:
    """kill -9 in the middle of a training and of a call, after others are through."""
    cells = {"axes": {"x": {"range": [40]}}, "include": [{"x": 1000, "behaviour": "wait", "group": 1}]}
    fixed = TRAINING | {"method": "oracle_bp", "eta": 1e-3, "train_rule": "dfa"}
    with Client(service.url) as client:
        noops = client.submit({"name": "slow and fast", "experiment": "noop", **cells}).id
        long = {"name": "long", "experiment": "linesearch", "fixed": fixed, "retry": {"max": 3, "backoff_s": 0.1}}
        training = client.submit(long).id
        deadline = time.monotonic() + 120
        while (
            saved_epoch(service) <= 20
            or client.sweep(noops).view.counts.get("succeeded", 0) < 40
            or not client.sweep(noops).view.active
        ):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    service.kill()
    saved = saved_epoch(service)
    service.start()
    with Client(service.url) as client:
        assert client.sweep(noops).view.counts["succeeded"] >= 40
        service.gate.touch()
        epochs = []
        while not (view := client.sweep(training).view).state.finished:
            epochs.append(epoch_of(view))
            time.sleep(0.05)
        client.sweep(noops).wait(timeout=240)
    return Interrupted(noops, training, saved, [epoch for epoch in epochs if epoch >= 0])


@pytest.mark.timeout(600)
def test_a_killed_service_goes_on_where_it_was(service: Service, interrupted: Interrupted) -> None:
    """What was through stays, what was in flight runs again, each cell has one row."""
    with Client(service.url) as client:
        assert client.sweep(interrupted.noop).view.counts == {"succeeded": 41}
        count = "SELECT cell, sweep, count(*) AS n FROM results WHERE experiment = 'noop' GROUP BY ALL"
        rows = client.query(count).table.to_pylist()
        assert {row["n"] for row in rows} == {1}
        assert sum(row["sweep"] == interrupted.noop for row in rows) == 41


@pytest.mark.timeout(600)
def test_a_killed_training_goes_on_from_its_last_saved_epoch(service: Service, interrupted: Interrupted) -> None:
    """The epochs before the save are not trained again."""
    import torch

    from creditgrid.core.science.data import ImageData
    from creditgrid.core.science.network import ResidualMLP
    from creditgrid.core.science.random_streams import generator
    from creditgrid.core.science.training import train

    assert interrupted.saved > 20
    assert min(interrupted.epochs) >= interrupted.saved
    with Client(service.url) as client:
        sweep = client.sweep(interrupted.training)
        assert sweep.view.state == "succeeded"
        (row,) = sweep.results().table.to_pylist()
        checkpoint = client.artifact(json.loads(row["parents"])["checkpoint"])
        (feedback,) = (task for task in sweep.tasks() if task.kind == "feedback")
        matrices = client.artifact(feedback.key)
        (digits,) = (task for task in sweep.tasks() if task.kind == "data")
        data = ImageData.from_arrays(client.artifact(digits.key))

    # The same training without a break, in this process.
    network = ResidualMLP(64, 64, 10, 4, generator=generator(5, "init"))
    stack = torch.stack([torch.from_numpy(matrices[f"B.{layer}"]) for layer in range(4)])
    options = {"epochs": 160, "batch_size": 64, "lr": 1e-3, "weight_decay": 0.01, "seed": 5}
    for _ in train(network, data, rule="dfa", feedback=stack, **options):
        pass
    for name, tensor in network.state_dict().items():
        assert np.array_equal(tensor.numpy(), checkpoint[name]), name


@pytest.mark.timeout(600)
def test_a_killed_service_leaves_no_gap_in_a_curve(service: Service, interrupted: Interrupted) -> None:
    with Client(service.url) as client:
        hold_curve(client, interrupted.training, 160)


@pytest.mark.timeout(300)
def test_a_killed_worker_leaves_no_gap_in_a_curve(service: Service) -> None:
    """Killed after its first saves; then a sweep asks for another checkpoint of the same run."""
    last = 800  # long enough to be killed after a save, twice
    fixed = TRAINING | {"seed": 6, "method": "oracle_bp", "eta": 1e-3, "train_epochs": last}
    spec = {"name": "k", "experiment": "linesearch", "fixed": fixed, "retry": {"max": 5, "backoff_s": 0.1}}
    with Client(service.url) as client:
        sweep = client.submit(spec)
        kills, saved, deadline = 0, -1, time.monotonic() + 120
        while kills < 2 and not sweep.refresh().state.finished:
            assert time.monotonic() < deadline
            workers = service.workers("train")
            if (found := saved_epoch(service)) > saved and workers:
                kills, saved = kills + 1, found
                os.kill(workers[0], signal.SIGKILL)
            time.sleep(0.05)
        sweep.wait(timeout=240)
        rows = hold_curve(client, sweep.id, last)
        assert max(row["attempt"] for row in rows) == 1 + kills >= 2
        early = client.submit(spec | {"fixed": fixed | {"checkpoint_epoch": 50}}).wait(timeout=240)
        assert hold_curve(client, early.id, last) == rows
        sql = "SELECT count(*) AS n FROM curves WHERE run IN (SELECT run FROM stages WHERE sweep = '{}')"
        assert client.query(sql.format(early.id)).table["n"].to_pylist() == [last]


def hold_curve(client: Client, sweep: str, last: int) -> list[dict[str, Any]]:
    """The sweep has one training, whose curve has each epoch once; returns its rows."""
    rows = [row for row in client.sweep(sweep).curves().to_pylist() if row["kind"] == "train"]
    assert [row["epoch"] for row in rows] == list(range(1, last + 1))
    assert all(row["train_loss"] > 0 and row["images_per_s"] > 0 for row in rows)
    assert [row["epoch"] for row in rows if row["test_accuracy"] is not None] == [last]
    steps = [1e-3 * (1 + math.cos(math.pi * (row["epoch"] - 1) / last)) / 2 for row in rows]
    assert [row["step_size"] for row in rows] == pytest.approx(steps)
    return rows


def saved_epoch(service: Service) -> int:
    """The epoch that the one training that runs has saved last, or -1."""
    saves = list(service.saves.glob("[!.]*"))
    assert len(saves) <= 1
    return int(load(saves[0].read_bytes()[64:])["epoch"]) if saves else -1


def epoch_of(view: SweepView) -> int:
    """The epoch that a running training reports, or -1."""
    notes = [activity.note for activity in view.active if activity.kind == "train"]
    found = re.search(r"epoch (\d+) of", notes[0]) if notes else None
    return int(found[1]) if found else -1
