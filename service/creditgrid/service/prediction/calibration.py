"""How fast this machine is, before anything ran: measured once by a child process, and kept in the ledger.

The measurement takes some seconds, most of them for loading torch, so no request waits for its end: until then, times
of kinds that never ran are unknown. It starts once the runner is ready, not to measure the start of a cluster.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import sqlalchemy as sa
import structlog

from creditgrid.core.work import LARGEST
from creditgrid.service.ledger.ledger import Ledger
from creditgrid.service.ledger.past_calls import Calibration, read_calibration, write_calibration

COMMAND = (sys.executable, "-P", "-m", "creditgrid.workers.calibrate")
LONGEST_S = 180.0
"""A machine that is busy loads torch slowly."""
RUNNER_WAIT_S = 120.0
POLL_S = 0.2
SECRETS = ("CREDITGRID_TOKEN", "CREDITGRID_DATABASE_URL")

log = structlog.get_logger()


class Calibrations:
    """Of the CPU and the GPU of this machine. May be used from any thread.

    Args:
        ledger: where they are kept; None to measure each time.
        keep: whether to write what was measured to the ledger.
        command: measures, and prints the result as JSON.
    """

    def __init__(self, ledger: Ledger | None, *, keep: bool = True, command: tuple[str, ...] = COMMAND) -> None:
        self._ledger, self._keep, self._command = ledger, keep, command
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
        """Read what the ledger knows, or measure in the background, once ``ready``."""
        if self._ledger is not None:
            with self._ledger.read() as connection:
                for device in ("cpu", "cuda"):
                    if found := read_calibration(connection, socket.gethostname(), device):
                        self._found[device] = found
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
            output, errors = self._process.communicate(timeout=LONGEST_S)
        except (OSError, subprocess.TimeoutExpired) as error:
            if self._process is not None:
                self._process.kill()
            self._failed(f"{type(error).__name__}: {error}")
            return
        try:
            self._found.update({device: _calibration(values) for device, values in json.loads(output).items()})
        except (ValueError, TypeError, KeyError, AttributeError):
            self._failed(f"{output} {errors}".strip()[-500:] or "no output")
            return
        if self._ledger is None or not self._keep:
            return
        log.info("calibrated", **{device: found._asdict() for device, found in self._found.items()})
        with suppress(sa.exc.OperationalError), self._ledger.write() as connection:  # the next start measures again
            for device, found in self._found.items():
                write_calibration(connection, socket.gethostname(), device, found)

    def _failed(self, why: str) -> None:
        if self._stopping.is_set():
            return
        self.problem = f"the speed of this machine could not be measured ({why.splitlines()[-1]:.200})"
        if self._keep:
            log.warning("calibration failed", error=why)


def _calibration(values: dict[str, float]) -> Calibration:
    found = Calibration(*(float(values[name]) for name in ("launches", "flops", "elements")))
    if not all(0 < price < LARGEST for price in found):
        raise ValueError(f"a price is no positive number: {values}")
    return found
