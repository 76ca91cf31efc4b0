"""The client and a real service process: tasks computed again here, and a service that is killed under a watcher."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import creditgrid_noop as noop
import httpx
import pytest

from creditgrid.client import Client
from creditgrid.client.cli import main as cli
from creditgrid.core.rows import LEADING, PROVENANCE
from creditgrid.core.states import State
from creditgrid.core.wire import EventView

pytestmark = pytest.mark.slow
PLUGIN = Path(__file__).resolve().parent.parent / "plugin"
LINESEARCH = {
    "name": "digits",
    "experiment": "linesearch",
    "fixed": {"dataset": "digits", "train_epochs": 1, "fit_epochs": 1, "num_blocks": 2, "d_hidden": 16},
    "axes": {"method": ["dfa", "vec"], "eta": [1e-3, 1e-2]},
}


class Service:
    """A service process on one port and one folder, whose tasks run in it; it can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.gate = folder / "gate"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = int(probe.getsockname()[1])
        self.url = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, wait: bool = True) -> None:
        options = ["--runner", "local", "--cpus", "1", "--port", str(self._port), "--data-dir", str(self._folder)]
        self._folder.mkdir(exist_ok=True)
        with (self._folder / "service.log").open("ab") as log:
            command = [sys.executable, "-m", "creditgrid.service", "serve", *options]
            environment = os.environ | {noop.GATE: str(self.gate)}
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        deadline = time.monotonic() + 90
        while wait and not self._ready():
            assert self._process.poll() is None, (self._folder / "service.log").read_text()[-4000:]
            assert time.monotonic() < deadline, (self._folder / "service.log").read_text()[-4000:]
            time.sleep(0.1)

    def kill(self) -> None:
        """As the power would."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def _ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/readyz").is_success
        except httpx.HTTPError:
            return False


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with pytest.MonkeyPatch.context() as patch:
        path = os.environ.get("PYTHONPATH")
        patch.setenv("PYTHONPATH", str(PLUGIN) + (os.pathsep + path if path else ""))
        service = Service(tmp_path_factory.mktemp("service") / "data")
        service.start()
        yield service
        service.kill()


def without_provenance(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows without where and when they were made."""
    made = (LEADING.keys() | PROVENANCE.keys()) - {"cell", "experiment", "diverged", "task", "parents"}
    return [{name: value for name, value in row.items() if name not in made} for row in rows]


@pytest.mark.parametrize(
    "spec",
    [
        {"name": "n", "experiment": "noop", "include": [{"x": 7, "y": 0.1}, {"x": 8, "base": "ok"}]},
        {"name": "nan", "experiment": "noop", "include": [{"x": 9, "behaviour": "nan"}]},
        LINESEARCH,
    ],
    ids=["noop", "nan", "digits"],
)
def test_a_task_computed_here_has_the_rows_that_the_service_has(
    real: Service, spec: dict[str, Any], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CREDITGRID_URL", real.url)
    with Client(real.url) as client:
        sweep = client.submit(spec).wait(timeout=120)
        # JSON keeps floats exactly.
        rows = json.loads(json.dumps(without_provenance(sweep.results().to_pylist())))
        keys = sorted({row["cell"] for row in rows})
    capfd.readouterr()
    for key in (keys[0], keys[-1]):
        assert cli.main(["run-task", key, "-o", "json"]) == 0
        found = without_provenance(json.loads(capfd.readouterr().out)["rows"])
        expected = [row for row in rows if row["cell"] == key]
        assert [{name: row[name] for name in found[0]} for row in expected] == found


def test_a_stage_computed_here_is_the_artifact_that_the_service_has(
    real: Service, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with Client(real.url) as client:
        sweep = client.submit(LINESEARCH).wait(timeout=120)
        (train,) = [task for task in sweep.tasks() if task.kind == "train"]
        capfd.readouterr()
        assert cli.main(["run-task", train.key, "-o", "json", "--keep", str(tmp_path / "k"), "--url", real.url]) == 0
        document = json.loads(capfd.readouterr().out)
        assert (
            Path(document["artifact"]).read_bytes()
            == client.download_artifact(train.key, tmp_path / "theirs").read_bytes()
        )


def asleep(*, group: int) -> dict[str, Any]:
    """A sweep of one call that waits for the gate and one that is done at once."""
    cells = [{"x": 1, "group": group}, {"x": 2, "behaviour": "wait", "group": group + 1}]
    return {"name": "asleep", "experiment": "noop", "include": cells}


def test_a_service_that_is_killed_and_comes_back_is_waited_for(real: Service, tmp_path: Path) -> None:
    with Client(real.url) as client, (tmp_path / "said").open("w") as said:
        sweep = client.submit(asleep(group=100))
        received: list[EventView] = []
        follower = threading.Thread(target=lambda: received.extend(client.sweep(sweep.id).events()), daemon=True)
        waiter = threading.Thread(target=lambda: client.sweep(sweep.id).wait(timeout=120), daemon=True)
        follower.start()
        waiter.start()
        command = [sys.executable, "-m", "creditgrid.client.cli", "watch", sweep.id, "--url", real.url]
        watcher = subprocess.Popen(command, stderr=said)
        try:
            while "running: " not in (tmp_path / "said").read_text():
                assert watcher.poll() is None
                time.sleep(0.05)
            while not any(event.type == "call.started" for event in received):  # it comes by a connection of its own
                time.sleep(0.05)
            real.kill()
            assert not sweep.view.state.finished
            time.sleep(1.0)
            assert watcher.poll() is None
            assert waiter.is_alive()
            real.start()
            real.gate.touch()
            assert watcher.wait(timeout=120) == 0, (tmp_path / "said").read_text()
        finally:
            watcher.kill()
            watcher.wait()
        lines = (tmp_path / "said").read_text().splitlines()
        assert lines[-1].startswith("succeeded: 2/2 cells")
        assert "Traceback (most recent call last):" not in lines
        waiter.join(30)
        follower.join(30)
        assert not waiter.is_alive()
        assert not follower.is_alive()
        assert sweep.refresh().state is State.SUCCEEDED
        # Each event came once, though the connection that brought them was lost in between.
        assert [event.id for event in received] == [event.id for event in sweep.history()]
        assert received[-1].type == "sweep.finished"


def test_what_cannot_be_asked_is_one_clear_line(real: Service, capfd: pytest.CaptureFixture[str]) -> None:
    with Client(real.url) as client:
        sweep = client.submit({"name": "n", "experiment": "noop", "axes": {"x": [1, 2]}}).wait(timeout=60)
    cases = [
        (["cancel", "nope"], 4, "nope"),
        (["pause", "nope"], 4, "nope"),
        (["retry", sweep.id], 5, ""),
        (["cancel", sweep.id], 5, ""),
        (["pause", sweep.id], 5, ""),
        (["extend", sweep.id, "--axis", "z=1"], 2, "/axes/z"),
        (["extend", sweep.id, "--axis", "x=a"], 2, "/axes/x/0"),
        (["run-task", "0" * 64], 4, "0" * 64),
    ]
    for arguments, code, said in cases:
        assert cli.main([*arguments, "--url", real.url]) == code, arguments
        out, err = capfd.readouterr()
        assert out == ""
        assert err.startswith("error: ")
        assert said in err
        assert "Traceback" not in err


def test_control_of_a_sweep_that_runs(real: Service, capfd: pytest.CaptureFixture[str]) -> None:
    def ask(*arguments: str) -> tuple[int, str]:
        code = cli.main([*arguments, "--url", real.url])
        return code, capfd.readouterr().out

    with Client(real.url) as client:
        spec = {"name": "n", "experiment": "noop", "fixed": {"behaviour": "sleep", "group": 200}, "axes": {"x": [1]}}
        sweep = client.submit(spec)
        code, out = ask("pause", sweep.id)
        assert (code, out.split(":")[0]) == (0, f"sweep {sweep.id} is paused")
        assert sweep.refresh().paused
        code, out = ask("pause", sweep.id)
        assert code == 0
        assert "nothing was changed: " in out
        code, out = ask("extend", sweep.id, "--axis", "x=2,3")
        assert code == 0, out
        assert "2 cells added, 3 in total" in out
        assert "nothing was changed: " in ask("extend", sweep.id, "--axis", "x=3")[1]
        assert ask("retry", sweep.id)[0] == 5
        assert ask("resume", sweep.id)[0] == 0
        assert not sweep.refresh().paused
        assert ask("cancel", sweep.id)[0] == 0
        assert sweep.wait(timeout=30).state is State.CANCELLED
        code, out = ask("cancel", sweep.id)
        assert code == 0
        assert "nothing was changed: " in out
        assert sum(sweep.view.counts.values()) == sweep.view.cells == 3
