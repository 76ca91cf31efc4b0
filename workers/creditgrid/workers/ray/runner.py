"""The Ray runner: supervises a child process that is the Ray driver, and talks to it over a pipe.

Ray ends its driver when the cluster is gone, so the process that answers HTTP and writes the ledger must not be the
driver. When the child dies, everything in flight is reported as Lost and a new child is started, at growing intervals.
A child that has been silent for too long is killed, because its cluster is gone or hangs. The child exits when this
process is gone: it sees the end of the pipe.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from creditgrid.workers.artifacts import ArtifactStore
from creditgrid.workers.ray.local_cluster import LocalCluster
from creditgrid.workers.ray.nodes import connection_error
from creditgrid.workers.runner import Call, Capacity, Failed, Lost, Message, drain

START_TIMEOUT_S = 120.0
"""A driver that has not joined a cluster by then is ended: without a cluster ray.init can block for many minutes."""
SILENCE_S = 15.0
"""A driver sends a heartbeat every 2 s; one that has sent none for so long is killed."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 15.0
ABSENT_PAUSE_S = 2.0
"""The pause before an address where nothing listens is tried again."""
STOP_TIMEOUT_S = 20.0
SECRETS = ("CREDITGRID_TOKEN", "CREDITGRID_DATABASE_URL")
"""Removed from the driver's environment: tasks, and the packages that define them, must not see these."""

log = logging.getLogger(__name__)


class RayRunner:
    """Runs calls on the Ray cluster at ``address``, or on one started for it on this machine; see ``runner.Runner``."""

    def __init__(
        self,
        store: ArtifactStore,
        log: Path,
        address: str | None = None,
        cpus: int | None = None,
        gpus: int | None = None,
    ) -> None:
        self._address = address
        self._cluster = LocalCluster(store.root)
        self._settings = {
            "store": str(store.root),
            "address": address,
            "folder": str(self._cluster.folder),
            "cpus": cpus,
            "gpus": gpus,
        }
        self._log_file = log
        self._messages: SimpleQueue[Message] = SimpleQueue()
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._capacity = Capacity(0, 0, 0, degraded="Ray is starting")
        self._waiting: list[Call] = []  # submitted before the driver is up
        self._pipe: Connection | None = None
        self._ready = False
        self._losses = 0  # Lost messages that wait for the next poll
        self._supervisor: threading.Thread | None = None

    def start(self) -> None:
        self._supervisor = threading.Thread(target=self._supervise, name="creditgrid-ray-supervisor", daemon=True)
        self._supervisor.start()

    def capacity(self) -> Capacity:
        return self._capacity

    def submit(self, call: Call) -> None:
        with self._lock:
            if self._losses:  # the next poll reports everything as lost, which includes this call
                return
            if not self._ready or not self._send(("submit", call)):
                self._waiting.append(call)

    def cancel(self, call: int) -> None:
        with self._lock:
            if any(waiting.id == call for waiting in self._waiting):
                self._waiting = [waiting for waiting in self._waiting if waiting.id != call]
                self._messages.put(Failed(call, "cancelled", "", transient=False))
            elif self._ready:
                self._send(("cancel", call))

    def poll(self, timeout: float) -> list[Message]:
        found = drain(self._messages, timeout)
        with self._lock:
            self._losses -= sum(isinstance(message, Lost) for message in found)
        return found

    def stop(self) -> None:
        self._stopping.set()
        with self._lock:
            self._send(("stop",))
        if self._supervisor is not None:
            self._supervisor.join(STOP_TIMEOUT_S + 10)

    def _send(self, message: tuple[Any, ...]) -> bool:
        if self._pipe is None:
            return False
        try:
            self._pipe.send(message)
        except OSError:  # the child is gone: the supervisor notices it, and reports the loss
            return False
        return True

    def _supervise(self) -> None:
        pause = FIRST_PAUSE_S
        while not self._stopping.is_set():
            if why := connection_error(self._address or ""):
                self._capacity = Capacity(0, 0, 0, degraded=f"no Ray cluster answers at {self._address}: {why}")
                self._stopping.wait(ABSENT_PAUSE_S)
                continue
            started = time.monotonic()
            try:
                reason = self._run_driver()
            except Exception as error:  # whatever it is, sweeps must not hang while the service says that it is ready
                log.exception("the Ray supervisor")
                reason = f"the Ray driver cannot be supervised: {type(error).__name__}: {error}"
            if self._stopping.is_set():
                break
            self._capacity = Capacity(0, 0, 0, degraded=reason)
            with self._lock:
                self._ready, self._pipe, self._waiting = False, None, []
                self._losses += 1
                self._messages.put(Lost(reason))
            if time.monotonic() - started > 60:
                pause = FIRST_PAUSE_S
            self._stopping.wait(pause)
            pause = min(pause * 2, LONGEST_PAUSE_S)
        if self._address is None:
            self._cluster.remove()

    def _run_driver(self) -> str:
        """Run one driver to its end; returns why it ended."""
        ours, theirs = Pipe()
        environment = {name: value for name, value in os.environ.items() if name not in SECRETS} | {
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
            "RAY_ENABLE_AUTO_CONNECT": "0",  # a driver that has left its cluster must not start another one
            # Idle workers are kept: the next small task does not pay for `import torch` again.
            "RAY_idle_worker_killing_time_threshold_ms": str(24 * 3600 * 1000),
            "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # CUDA needs it to be deterministic
        }
        if self._address is None:
            environment |= self._cluster.environment()
        # -P: nothing is imported from the current folder, where a user's modules may have any name.
        command = [sys.executable, "-P", "-m", "creditgrid.workers.ray.driver", str(theirs.fileno())]
        try:
            if self._address is None:
                self._cluster.clear()
            self._log_file.parent.mkdir(parents=True, exist_ok=True)
            with self._log_file.open("ab") as log:
                child = subprocess.Popen(
                    command,
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    start_new_session=True,  # Ctrl-C reaches the service alone, which stops its cluster
                )
        except OSError as error:
            return f"the Ray driver cannot be started: {error}"
        finally:
            theirs.close()
        try:
            ours.send(self._settings)
            with self._lock:
                self._pipe = ours
            return self._listen(ours, child)
        except OSError:
            return self._exit_reason(child)
        finally:
            _reap(child)
            ours.close()
            if self._address is None:
                self._cluster.kill()

    def _listen(self, pipe: Connection, child: subprocess.Popen[bytes]) -> str:
        last_heartbeat = time.monotonic()
        while True:
            try:
                found = pipe.poll(0.5)
                silent = time.monotonic() - last_heartbeat
                if not self._ready and self._stopping.is_set():
                    child.terminate()  # it reads the pipe only once it has joined a cluster
                    return "stopped"
                if not self._ready and silent > START_TIMEOUT_S:
                    child.terminate()
                    return f"Ray did not start within {START_TIMEOUT_S:.0f} s; its log is {self._log_file}"
                if self._ready and not found and silent > SILENCE_S:
                    child.kill()
                    return f"Ray has not answered for {SILENCE_S:.0f} s: the cluster is gone, or hangs"
                if not found:
                    continue
                message = pipe.recv()
            except EOFError:
                return self._exit_reason(child)
            if isinstance(message, Capacity):
                last_heartbeat = time.monotonic()
                self._capacity = message
                with self._lock:
                    if not self._ready:
                        self._ready = True
                        waiting, self._waiting = self._waiting, []
                        for call in waiting:
                            self._send(("submit", call))
            elif isinstance(message, str):
                return message
            else:
                self._messages.put(message)

    def _exit_reason(self, child: subprocess.Popen[bytes]) -> str:
        _reap(child)
        return f"the Ray driver ended with status {child.returncode}; its log is {self._log_file}"


def _reap(child: subprocess.Popen[bytes]) -> None:
    try:
        child.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
