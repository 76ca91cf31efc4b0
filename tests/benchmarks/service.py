"""What the service costs where the cells cost nothing, and Ray alone and Ray Tune beside it, for scale."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx
import psutil

from creditgrid.client import Client
from creditgrid.core.states import State

PLUGIN = Path(__file__).parents[1] / "plugin"
AT_WORK = {State.QUEUED, State.RUNNING}


class Overhead(NamedTuple):
    """From POST to committed rows of a no-op grid, and what the controller took above its start."""

    cells: int
    seconds: float
    planning_seconds: float  # of these, until POST was answered
    megabytes: float
    ledger_bytes: int
    again_seconds: float


class Restart(NamedTuple):
    """After a kill -9: from the start of the process to a listening socket, and to the first call of the runner."""

    finished: int
    open: int
    listening_seconds: float
    seconds: float


@contextmanager
def serving(data_dir: Path, *, ready: bool = True) -> Iterator[tuple[str, psutil.Process]]:
    """A real service with Ray, with the no-op experiment registered; unless ``ready`` is waited for, just listening."""
    port_file = data_dir / "url"
    port_file.unlink(missing_ok=True)
    environment = os.environ | {"PYTHONPATH": str(PLUGIN)}
    command = [sys.executable, "-m", "creditgrid.service", "serve", "--port", "0", "--port-file", str(port_file)]
    with (data_dir / "service.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--data-dir", str(data_dir / "data")], env=environment, stdout=log, stderr=log
        )
    try:
        while not port_file.exists():
            if process.poll() is not None:
                raise RuntimeError((data_dir / "service.log").read_text())
            time.sleep(0.05)
        url = port_file.read_text().strip()
        while ready and httpx.get(f"{url}/readyz").status_code != 200:
            time.sleep(0.1)
        yield url, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(60)


def overhead(cells: int) -> Overhead:
    """The controller is the service process; its children are the Ray driver and the cluster."""
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(Path(folder)) as (url, controller),
        Client(url, timeout=1200) as client,
    ):
        client.submit({"name": "warm", "experiment": "noop", "axes": {"x": [-1]}}).wait()
        start = peak = controller.memory_info().rss
        done = threading.Event()

        def watch() -> None:
            nonlocal peak
            while not done.wait(0.02):
                peak = max(peak, controller.memory_info().rss)

        watcher = threading.Thread(target=watch)
        watcher.start()
        spec = {"name": "noop", "experiment": "noop", "axes": {"x": {"range": [cells]}}}
        began = time.perf_counter()
        sweep = client.submit(spec)
        planning = time.perf_counter() - began
        sweep.wait()
        seconds = time.perf_counter() - began
        (count,) = client.query("SELECT count(*) FROM results WHERE x >= 0").table.to_pydict().popitem()[1]
        done.set()
        watcher.join()
        assert count == cells, f"{count} rows of {cells}"
        began = time.perf_counter()
        assert client.submit(spec).wait().state == "cached"
        again = time.perf_counter() - began
        ledger = sum(file.stat().st_size for file in (Path(folder) / "data").glob("ledger.sqlite*"))
    return Overhead(cells, seconds, planning, (peak - start) / 2**20, ledger, again)


def restart(cells: int) -> Restart:
    """Kill a service that has run ``cells`` cells and was just given as many more, and start it again."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with serving(folder) as (url, controller), Client(url, timeout=1200) as client:
            client.submit({"name": "done", "experiment": "noop", "axes": {"x": {"range": [cells]}}}).wait()
            axes = {"group": {"range": [cells // 100]}, "x": {"range": [100]}}
            sweep = client.submit({"name": "open", "experiment": "noop", "fixed": {"y": 1.0}, "axes": axes})
            controller.kill()
            controller.wait()
        began = time.perf_counter()
        with serving(folder, ready=False) as (url, _), Client(url) as client:
            listening = time.perf_counter() - began
            view = client.sweep(sweep.id).view
            while not view.counts.keys() & AT_WORK:
                time.sleep(0.02)
                view = client.sweep(sweep.id).view
            seconds = time.perf_counter() - began
        opened = view.cells - view.counts.get(State.SUCCEEDED, 0)
    return Restart(cells + view.cells - opened, opened, listening, seconds)


def ray_alone(cells: int) -> float:
    """Seconds that Ray alone takes to move the parameters of as many cells to workers and their rows back.

    A task has 100 cells, up to 256 tasks are in flight, and its workers have started. Nothing is planned or kept.
    """
    return _seconds(f"""
import time
import ray
ray.init(include_dashboard=False, log_to_driver=False)
fixed = {{"y": 0.0, "behaviour": "ok", "base": "none", "group": 0}}

@ray.remote
def rows(cells):
    return [{{"twice": 2.0 * cell["x"]}} for cell in cells]

def run(cells):
    moved, flying = 0, []
    for first in range(0, cells, 100):
        flying.append(rows.remote([{{"x": x, **fixed}} for x in range(first, min(first + 100, cells))]))
        if len(flying) == 256:
            ready, flying = ray.wait(flying, num_returns=32)
            moved += sum(map(len, ray.get(ready)))
    return moved + sum(map(len, ray.get(flying)))

run(20_000)
began = time.perf_counter()
assert run({cells}) == {cells}
print("seconds", time.perf_counter() - began)
""")


def ray_tune(trials: int) -> float:
    """Seconds that Ray Tune takes for as many trials of a function that returns at once, with its default settings."""
    return _seconds(f"""
import time
import ray
from ray import tune
ray.init(include_dashboard=False, log_to_driver=False)
space = {{"x": tune.grid_search(list(range({trials})))}}
began = time.perf_counter()
tune.Tuner(
    lambda config: {{"twice": 2 * config["x"]}},
    param_space=space,
    run_config=tune.RunConfig(verbose=0, storage_path=STORAGE),
).fit()
print("seconds", time.perf_counter() - began)
""")


def _seconds(script: str) -> float:
    """The seconds that a script prints; ``STORAGE`` in it is a folder."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "measured.py"
        path.write_text(script.replace("STORAGE", repr(folder)))
        answer = subprocess.run(
            [sys.executable, str(path)],
            capture_output=True,
            text=True,
            timeout=1200,
            check=False,
            env=os.environ | {"RAY_USAGE_STATS_ENABLED": "0"},
        )
    lines = [line.split() for line in answer.stdout.splitlines() if line.startswith("seconds ")]
    if not lines:
        raise RuntimeError(answer.stderr[-2000:])
    return float(lines[-1][1])
