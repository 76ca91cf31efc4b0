"""The service under test: a process with its own Ray, started, killed and started again on one data directory."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil

HERE = Path(__file__).parent
INJECTED = HERE / "injected"
PLUGINS = (HERE / "plugin", HERE.parent / "plugin")
ARMED = "CREDITGRID_CHAOS_DIR"
"""Names the folder where faults are armed. All processes of the service inherit it, and are found by it."""
START_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 90.0
LOG_SHOWN = 3000
"""Characters of a log's end that are shown."""


class DidNotStart(Exception):
    """The service ended while it started, or was not ready in time."""


class Service:
    """A service below ``folder``; faults of its processes are armed in ``folder/armed``."""

    def __init__(self, folder: Path, cpus: int = 2) -> None:
        self.folder, self.data, self.armed = folder, folder / "data", folder / "armed"
        self.armed.mkdir(parents=True)
        self.url = ""
        self.starts = 0
        self._cpus = cpus
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *, ready: bool = True) -> None:
        """Start it and wait until it answers; with ``ready`` also until it can run calls.

        Raises:
            DidNotStart: with the end of its log.
        """
        port_file = self.folder / "url"
        port_file.unlink(missing_ok=True)
        paths = [str(INJECTED), *map(str, PLUGINS), str(self.armed), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(paths),
            ARMED: str(self.armed),
            "RAY_TMPDIR": str(self.folder.parent),  # Ray's files are removed with the run's folder
        }
        options = [
            "--port",
            "0",
            "--port-file",
            str(port_file),
            "--data-dir",
            str(self.data),
            "--cpus",
            str(self._cpus),
        ]
        with (self.folder / "service.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "creditgrid.service", "serve", *options],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C reaches this run alone, which ends everything itself
            )
        self.starts += 1
        self._wait(port_file.exists, "has not written its address")
        self.url = port_file.read_text().strip()
        if ready:
            self._wait(self.ready, "is not ready")

    def ready(self) -> bool:
        """Whether ``/readyz`` says that sweeps advance."""
        try:
            return httpx.get(f"{self.url}/readyz", timeout=10, trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        """As ``kill -9`` does."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def await_death(self, timeout: float) -> None:
        """Reap it after something else killed it."""
        assert self._process is not None
        self._process.wait(timeout)

    def stop(self) -> int:
        """Send SIGTERM; returns the exit status."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(STOP_TIMEOUT_S)

    def log_end(self) -> str:
        """The end of what it printed, without a line for each request."""
        path = self.folder / "service.log"
        lines = path.read_text(errors="replace").splitlines() if path.exists() else []
        return "\n".join(line for line in lines if '"event": "request"' not in line)[-LOG_SHOWN:]

    # -- its processes -----------------------------------------------------------------------------------------------

    def processes(self) -> Iterator[psutil.Process]:
        """Every process of the service, whatever its parent is now."""
        wanted = str(self.armed).encode()
        for process in psutil.process_iter():
            try:
                if (
                    wanted in Path(f"/proc/{process.pid}/environ").read_bytes()
                    and process.status() != psutil.STATUS_ZOMBIE
                ):
                    yield process
            except (OSError, psutil.Error):  # it ended, or it is someone else's
                continue

    def driver(self) -> list[psutil.Process]:
        """The Ray driver."""
        return [p for p in self.processes() if "creditgrid.workers.ray.driver" in command(p)]

    def raylets(self) -> list[psutil.Process]:
        """The one raylet, if it is there."""
        return [p for p in self.processes() if command(p)[:1] and command(p)[0].endswith("/raylet")]

    def cluster(self) -> list[psutil.Process]:
        """All of Ray but the driver: its control service, raylet, workers, agents."""
        own = {None if self._process is None else self._process.pid, *(p.pid for p in self.driver())}
        return [p for p in self.processes() if p.pid not in own and is_ray(command(p))]

    def workers_at_work(self) -> dict[str, psutil.Process]:
        """Workers that run a call, by the name of its Ray task."""
        found = {}
        for process in self.processes():
            title = (command(process) or [""])[0]
            if re.fullmatch(r"ray::\S+-\d+\s*", title):  # Ray's agents and idle workers have no number
                found[title.strip()] = process
        return found

    def end_all(self) -> int:
        """Kill all its processes; returns how many there were."""
        killed = 0
        deadline = time.monotonic() + 20
        while (left := list(self.processes())) and time.monotonic() < deadline:
            for process in left:
                killed += send(process, signal.SIGKILL)
            time.sleep(0.1)
        if self._process is not None:
            self._process.wait()
        return killed

    def _wait(self, done: Callable[[], bool], otherwise: str) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not done():
            if not self.alive:
                raise DidNotStart(f"the service ended while it started:\n{self.log_end()}")
            if time.monotonic() > deadline:
                raise DidNotStart(f"the service {otherwise} after {START_TIMEOUT_S:.0f} s:\n{self.log_end()}")
            time.sleep(0.05)


def command(process: psutil.Process) -> list[str]:
    """Its command line; empty if it has ended."""
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


def is_ray(line: list[str]) -> bool:
    """Whether a command line is one of Ray's."""
    return any(part.startswith("ray::") or "/ray/" in part for part in line[:3])


def send(process: psutil.Process, number: int) -> int:
    """Send a signal to a process that may have ended; returns 1 if it was sent, else 0."""
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return 0
    return 1
