"""How fast this machine is, before anything ran: measured once by a child process, and kept in a file for a month.

The measurement takes some seconds, most of them for loading torch, so no request waits for its end: until then, times
of kinds that never ran are unknown. It starts once the runner is ready, not to measure the start of a cluster.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from creditgrid.core.files import atomic_file
from creditgrid.core.work import LARGEST

COMMAND = (sys.executable, "-P", "-m", "creditgrid.workers.calibrate")
LONGEST_S = 180.0
"""A machine that is busy loads torch slowly."""
RUNNER_WAIT_S = 120.0
KEPT_S = 30 * 86400.0
POLL_S = 0.2
SECRETS = ("CREDITGRID_TOKEN", "CREDITGRID_DATABASE_URL")


class Calibration(NamedTuple):
    """How long one unit of each component of work takes on a device, in seconds."""

    launch_s: float
    flop_s: float
    element_s: float


class Calibrations:
    """Of the CPU and the GPU of this machine. May be used from any thread.

    Args:
        file: where they are kept; None to measure each time.
        command: measures, and prints the result as JSON.
    """

    def __init__(self, file: Path | None, command: tuple[str, ...] = COMMAND) -> None:
        self._file, self._command = file, command
        self._found: dict[str, Calibration] = {}
        self._done, self._stopping = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._process: subprocess.Popen[str] | None = None
        self.problem: str | None = None
        """Why nothing was measured, if that failed."""

    def of(self, gpu: bool) -> Calibration | None:
        """How fast the CPU or the GPU is; None while it is unknown."""
        return self._found.get("cuda" if gpu else "cpu")

    @property
    def measuring(self) -> bool:
        """Whether a measurement has started, and has not ended."""
        return self._thread is not None and not self._done.is_set()

    def wait(self, seconds: float) -> None:
        """Wait for the end of a measurement, but no longer than this."""
        if self.measuring:
            self._done.wait(seconds)

    def start(self, ready: Callable[[], bool] = lambda: True) -> None:
        """Read what an earlier process measured, or measure in the background, once ``ready``."""
        self._found = self._kept()
        if "cpu" not in self._found:
            self._thread = threading.Thread(target=self._run, args=(ready,), name="creditgrid-calibration", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End a measurement."""
        self._stopping.set()
        if self._process is not None:
            self._process.kill()
        if self._thread is not None:
            self._thread.join()

    def _run(self, ready: Callable[[], bool]) -> None:
        try:
            deadline = time.monotonic() + RUNNER_WAIT_S
            while not ready() and time.monotonic() < deadline and not self._stopping.wait(POLL_S):
                pass
            if not self._stopping.is_set():
                self._measure()
        finally:
            self._done.set()

    def _measure(self) -> None:
        environment = {name: value for name, value in os.environ.items() if name not in SECRETS}
        try:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=environment,
            )
            if self._stopping.is_set():
                self._process.kill()
            output, errors = self._process.communicate(timeout=LONGEST_S)
        except (OSError, subprocess.TimeoutExpired) as error:
            if self._process is not None:
                self._process.kill()
                self._process.wait()
            self._failed(f"{type(error).__name__}: {error}")
            return
        try:
            self._found = _calibrations(json.loads(output))
        except (ValueError, TypeError, KeyError, AttributeError):
            self._failed(f"{output} {errors}".strip()[-500:] or "no output")
            return
        if self._file is not None:
            with suppress(OSError):  # the next start measures again
                self._file.parent.mkdir(parents=True, exist_ok=True)
                with atomic_file(self._file) as kept:
                    kept.write(output.encode())

    def _kept(self) -> dict[str, Calibration]:
        if self._file is None:
            return {}
        try:
            if abs(time.time() - self._file.stat().st_mtime) > KEPT_S:
                return {}
            return _calibrations(json.loads(self._file.read_bytes()))
        except (OSError, ValueError, TypeError, KeyError, AttributeError):  # no file, or not what was written
            return {}

    def _failed(self, why: str) -> None:
        if not self._stopping.is_set():
            self.problem = f"the speed of this machine could not be measured ({why.splitlines()[-1]:.200})"


def usual_file() -> Path | None:
    """Where calibrations of this machine are kept: another number of cores or another torch has another file.

    None for a user without a home.
    """
    try:
        torch = version("torch")
    except PackageNotFoundError:
        torch = ""
    which = f"{platform.node()} {platform.machine()} {os.cpu_count()} {torch}"
    name = hashlib.sha256(which.encode()).hexdigest()[:16]
    try:
        return Path("~/.cache/creditgrid").expanduser() / f"calibration-{name}.json"
    except RuntimeError:
        return None


def _calibrations(measured: dict[str, Any]) -> dict[str, Calibration]:
    return {device: _calibration(values) for device, values in measured.items()}


def _calibration(values: dict[str, Any]) -> Calibration:
    found = Calibration(*(float(values[name]) for name in ("launches", "flops", "elements")))
    if not all(0 < price < LARGEST for price in found):
        raise ValueError(f"a price is no positive number: {values}")
    return found
