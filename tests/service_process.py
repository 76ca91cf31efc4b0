"""A service as users start it, in a process and a folder of its own, for tools that attack, load and measure it.

Its working directory, home and temporary folder are below ``folder``, so that a file that it writes elsewhere than in
its data directory is found there.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

PLUGIN = Path(__file__).parent / "plugin"
MARK = "TESTED_SERVICE_FOLDER"
"""All processes of the service inherit this variable, and are found by it."""
START_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 90.0


class DidNotStart(Exception):
    """The service ended while it started, or was not ready in time."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What the service's own process holds now, and how many processes it has below it."""

    megabytes: float
    descriptors: int
    threads: int
    children: int
    cpu_seconds: float


class ServiceProcess:
    """A service below ``folder``.

    Args:
        folder: of its data, its log, and whatever it writes.
        options: of ``creditgrid serve``, besides port and data directory.
        environment: further variables.
        descriptors: its limit of open files; None keeps this process's.
    """

    def __init__(
        self,
        folder: Path,
        *options: str,
        environment: dict[str, str] | None = None,
        descriptors: int | None = None,
    ) -> None:
        self.folder, self.data, self.log = folder, folder / "data", folder / "service.log"
        self.url = ""
        self._options, self._environment, self._descriptors = options, environment or {}, descriptors
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until ``/readyz`` says that sweeps advance.

        Raises:
            DidNotStart: with the end of its log.
        """
        places = {name: self.folder / name for name in ("home", "temporary", "work")}
        for place in places.values():
            place.mkdir(parents=True, exist_ok=True)
        port_file = self.folder / "url"
        port_file.unlink(missing_ok=True)
        paths = [str(PLUGIN), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("CREDITGRID_")}
        environment |= {
            "PYTHONPATH": os.pathsep.join(paths),
            MARK: str(self.folder),
            "HOME": str(places["home"]),
            "TMPDIR": str(places["temporary"]),
            "RAY_TMPDIR": str(self.folder.parent),  # a short path: sockets are below it
        }
        command = [sys.executable, "-m", "creditgrid.service", "serve", *self._options]
        command += ["--port", "0", "--port-file", str(port_file), "--data-dir", str(self.data)]
        if self._descriptors is not None:
            command = ["/bin/sh", "-c", f'ulimit -n {self._descriptors} && exec "$@"', "sh", *command]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                cwd=places["work"],
                env=environment | self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C reaches the tool alone, which then ends the service
            )
        self._wait(port_file.exists, "has not written its address")
        self.url = port_file.read_text().strip()
        self._wait(self._ready, "is not ready")

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        found = httpx.URL(self.url)
        return found.host, found.port or 80

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def usage(self) -> Usage:
        """Its memory, descriptors, threads, children and processor time now."""
        process = psutil.Process(self.pid)
        with process.oneshot():
            times = process.cpu_times()
            return Usage(
                process.memory_info().rss / 2**20,
                process.num_fds(),
                process.num_threads(),
                len(process.children(recursive=True)),
                times.user + times.system,
            )

    def terminate(self) -> None:
        """Send SIGTERM."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)

    def wait(self, timeout: float = STOP_TIMEOUT_S) -> int:
        """Its exit status, when it has ended.

        Raises:
            subprocess.TimeoutExpired: it still runs.
        """
        assert self._process is not None
        return self._process.wait(timeout)

    def processes(self) -> Iterator[psutil.Process]:
        """Every process of the service, whatever its parent is now."""
        wanted = f"{MARK}={self.folder}".encode()
        for process in psutil.process_iter():
            try:
                there = wanted in Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
                if there and process.status() != psutil.STATUS_ZOMBIE:
                    yield process
            except (OSError, psutil.Error):  # it ended, or it is someone else's
                continue

    def end_all(self) -> list[str]:
        """Kill what still runs; returns the command lines."""
        found = []
        deadline = time.monotonic() + 20
        while (left := list(self.processes())) and time.monotonic() < deadline:
            for process in left:
                try:
                    found.append(" ".join(process.cmdline())[:120])
                    process.kill()
                except psutil.NoSuchProcess:
                    continue
            time.sleep(0.1)
        if self._process is not None:
            self._process.wait()
        return found

    def log_end(self) -> str:
        """The last lines of its log, without one for each request."""
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        return "\n".join(line for line in lines if '"event": "request"' not in line)[-3000:]

    def _ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/readyz", timeout=10, trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False

    def _wait(self, done: Callable[[], bool], otherwise: str) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not done():
            if not self.alive:
                raise DidNotStart(f"the service ended while it started:\n{self.log_end()}")
            if time.monotonic() > deadline:
                raise DidNotStart(f"the service {otherwise} after {START_TIMEOUT_S:.0f} s:\n{self.log_end()}")
            time.sleep(0.05)


def allow_many_files() -> None:
    """Raise this process's limit of open files as far as it may: floods need many."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
