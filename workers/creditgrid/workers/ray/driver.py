"""The Ray driver: a process of its own, child of the service. It and ``worker`` are the only files that import ray.

The driver joins (or starts) a cluster, turns calls into Ray tasks, and holds the references of artifacts by key.
Checkpoints, estimators, fixed batches and datasets reach workers through the object store: they are put there once,
passed by reference, and mapped without copying. The references are a cache of the artifact store, bounded in bytes.
An object that is not in the cache, or was lost with a node, is loaded from the artifact store.

A call is a streaming generator: progress arrives live, each artifact is a return value of its own (so it outlives the
worker process), and the last item says how the call ended. Ray's own retries are off: the scheduler counts attempts.

A thread sends the service what the cluster has, every few seconds. It asks the cluster for that, and sends nothing
while the driver's main loop hangs: the service treats a silent driver as lost, and kills it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import ray
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from creditgrid.workers.artifacts import ArtifactStore
from creditgrid.workers.inputs import ArtifactCache, load_inputs
from creditgrid.workers.ray.nodes import Nodes
from creditgrid.workers.ray.worker import (
    kill_worker,
    run_call,
    run_call_with_code,
    take_kill_reason,
    task_name,
    warm_up,
)
from creditgrid.workers.ray.worker_process import WorkerProcess, describe_death, kill_process
from creditgrid.workers.runner import Call, Capacity, Failed, Finished, Message

CACHE_FRACTION = 0.5
"""The share of the object store that the cached artifacts may take."""
HEARTBEAT_S = 2.0
STALLED_S = 10.0
"""A main loop that makes no step for so long, while it loads no artifact, hangs in a call of Ray's."""
CANCEL_GRACE_S = 2.0
"""A call that still runs so long after its cancellation loses its worker."""
FETCH_S = 5.0
"""A message that cannot be fetched within this time was lost with the node that holds it."""
SHUTDOWN_S = 10.0


@dataclass(slots=True, eq=False)
class RunningCall:
    """A call that was submitted to Ray."""

    call: Call
    stream: Any
    process: WorkerProcess | None = None
    next_artifact: tuple[str, int] | None = None  # key and bytes of the artifact that the next item holds
    cancelled_at: float | None = None  # when Ray was last asked to end it

    def awaited(self) -> Any:
        """The object whose readiness means that there is something to do for the call.

        The stream of a cancelled call ends at once, but reading from it would block until its worker has finished.
        """
        return self.stream if self.cancelled_at is None else self.stream.completed()


class Driver:
    """One connection to a cluster, until the pipe closes."""

    def __init__(self, pipe: Connection, settings: dict[str, Any]) -> None:
        self._pipe, self._store = pipe, ArtifactStore(Path(settings["store"]))
        self._pipe_lock = threading.Lock()
        self._commands: SimpleQueue[tuple[Any, ...]] = SimpleQueue()
        self._running: dict[int, RunningCall] = {}
        self._references: ArtifactCache[Any] = ArtifactCache(0)
        self._nodes = Nodes()
        self._node = ""  # the node of this process
        self._last_step = time.monotonic()  # of the main loop
        self._loading = False
        self._closing = threading.Event()

    def connect(self, settings: dict[str, Any]) -> None:
        """Join the cluster at the address, or start one on this machine."""
        options: dict[str, Any] = {"log_to_driver": False, "configure_logging": True, "logging_level": "warning"}
        if settings["address"]:
            ray.init(address=settings["address"], **options)
        else:
            options |= {"num_cpus": settings["cpus"], "num_gpus": settings["gpus"], "_temp_dir": settings["folder"]}
            ray.init(address="local", include_dashboard=False, **options)
        self._node = ray.get_runtime_context().get_node_id()
        resources = ray.cluster_resources()
        self._references = ArtifactCache(int(resources.get("object_store_memory", 2**30) * CACHE_FRACTION))
        for _ in range(int(resources.get("CPU", 1))):
            warm_up.remote()

    def serve(self) -> None:
        """Run calls until the pipe closes or the service asks to stop."""
        threading.Thread(target=self._read, name="creditgrid-pipe", daemon=True).start()
        heartbeat = threading.Thread(target=self._send_heartbeats, name="creditgrid-heartbeat", daemon=True)
        heartbeat.start()
        self._work()
        self._closing.set()
        heartbeat.join(SHUTDOWN_S)  # it must not ask a cluster that we have left

    def _work(self) -> None:
        while True:
            self._last_step = time.monotonic()
            try:
                while True:
                    command = self._commands.get(timeout=0 if self._running else 0.5)
                    if command[0] == "stop":
                        return
                    if command[0] == "submit":
                        self._submit(command[1])
                    else:
                        self._cancel(command[1])
                    self._last_step = time.monotonic()
            except Empty:
                pass
            if self._nodes.lost():
                self._references.clear()  # some objects may be lost: they are loaded from the artifact store again
            self._collect()
            self._force_cancelled()

    def _send(self, message: Message | Capacity | str) -> None:
        with self._pipe_lock:
            self._pipe.send(message)

    def _read(self) -> None:
        try:
            while True:
                self._commands.put(self._pipe.recv())
        except (EOFError, OSError):
            # The service is gone, perhaps killed: exit at once, and end the cluster if it is ours.
            threading.Timer(SHUTDOWN_S, os._exit, [0]).start()  # shutdown may block if the cluster is gone too
            with contextlib.suppress(Exception):
                ray.shutdown()
            os._exit(0)

    def _send_heartbeats(self) -> None:
        missed = 0
        while not self._closing.is_set():
            self._nodes.refresh(ray.nodes())  # blocks while there is no GCS
            missed = missed + 1 if self._nodes.gone(self._node) else 0
            if missed == 2:  # a single miss may come from a busy machine
                self._send("the Ray node of this machine is gone")
                os._exit(1)
            if self._loading or time.monotonic() - self._last_step < STALLED_S:
                self._send(self._nodes.capacity())
            self._closing.wait(HEARTBEAT_S)

    def _submit(self, call: Call) -> None:
        self._loading = True
        try:
            arrays = load_inputs(call, self._reference)
        finally:
            self._loading = False
        if isinstance(arrays, Failed):
            self._send(arrays)
            return
        # A call that asks for more than any node has would wait for ever: it gets what the largest node has. Without
        # a GPU in the cluster everything runs on the CPU. A cluster that has no CPU yet is waited for.
        cpus = min(call.resources.cpu, self._nodes.largest("CPU") or call.resources.cpu)
        gpus = min(call.resources.gpu, self._nodes.largest("GPU"))
        try:
            function = run_call_with_code if any("code" in task.parents for task in call.tasks) else run_call
            remote = function.options(num_cpus=cpus, num_gpus=gpus, name=task_name(call))
            stream = remote.remote(call, str(self._store.root), *arrays)
        except (ValueError, ray.exceptions.RayError) as error:
            # Ray refuses the resources of this call, or the object store is full, which a large call goes through.
            full = isinstance(error, ray.exceptions.RayError)
            self._send(Failed(call.id, _line(error), traceback.format_exc(), transient=full))
            return
        self._running[call.id] = RunningCall(call, stream)

    def _reference(self, key: str) -> Any:
        cached = self._references.get(key)
        if cached is not None:
            return cached
        arrays = self._store.load(key)
        try:
            reference = ray.put(arrays)
        except ray.exceptions.RayError as error:
            raise OSError(f"the object store is full: {_line(error)}") from error
        self._references.put(key, reference, sum(array.nbytes for array in arrays.values()))
        return reference

    def _collect(self) -> None:
        """Take what the running calls have yielded."""
        if not self._running:
            return
        pending = {running.awaited(): running for running in self._running.values()}
        ready, _ = ray.wait(list(pending), num_returns=len(pending), timeout=0, fetch_local=False)
        if not ready:
            ready, _ = ray.wait(list(pending), num_returns=1, timeout=0.02, fetch_local=False)
        for found in ready:
            self._last_step = time.monotonic()  # fetching a lost item takes seconds
            running = pending[found]
            if running.cancelled_at is not None:
                self._end(Failed(running.call.id, "cancelled", "", transient=False))
                continue
            try:
                self._take_item(running)
            except StopIteration:
                text = "the worker ended the call without a result"
                self._end(Failed(running.call.id, text, "", transient=True))
            except (ray.exceptions.RayError, OSError) as error:
                self._end(self._failure(running, error))

    def _take_item(self, running: RunningCall) -> None:
        reference = next(running.stream)
        if running.next_artifact is not None:
            (key, size), running.next_artifact = running.next_artifact, None
            self._references.put(key, reference, size)
            return
        item = ray.get(reference, timeout=FETCH_S)
        if isinstance(item, WorkerProcess):
            running.process = item
        elif isinstance(item, tuple):
            running.next_artifact = item
        elif isinstance(item, Finished | Failed):
            self._end(item)
        else:
            self._send(item)

    def _end(self, message: Finished | Failed) -> None:
        del self._running[message.call]
        self._send(message)

    def _failure(self, running: RunningCall, error: Exception) -> Failed:
        call = running.call
        if isinstance(error, ray.exceptions.TaskCancelledError):
            return Failed(call.id, "cancelled", "", transient=False)
        # Whatever was lost with a worker or node is loaded from the artifact store the next time.
        self._references.drop([*call.inputs, *(task.key for task in call.tasks)])
        if isinstance(error, ray.exceptions.OutOfMemoryError):
            text = f"out of memory: Ray ended its process because its machine ran short of memory ({error})"
            return Failed(call.id, " ".join(text.split())[:2000], "", transient=True, crashed=True)
        if isinstance(error, ray.exceptions.WorkerCrashedError | ray.exceptions.NodeDiedError):
            return self._crash(call, running.process)
        # Our code in the worker raised this error, or Ray did on the way there.
        cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
        transient = isinstance(cause, OSError | ray.exceptions.RayError)
        return Failed(call.id, _line(error), str(error)[:20000], transient)

    def _crash(self, call: Call, process: WorkerProcess | None) -> Failed:
        if process is not None:
            if reason := take_kill_reason(process):
                return Failed(call.id, reason, "", transient=True, host=process.host, crashed=True)
            if self._nodes.gone(process.node):
                self._references.clear()
                text = f"the Ray node on {process.host} was lost, and with it the call's process {process.pid}"
                return Failed(call.id, text, "", transient=True, host=process.host)
        text, log = describe_death(process)
        return Failed(call.id, text, log, transient=True, host=process.host if process else None, crashed=True)

    def _cancel(self, call_id: int) -> None:
        running = self._running.get(call_id)
        if running is not None and running.cancelled_at is None:
            running.cancelled_at = time.monotonic()
            ray.cancel(running.stream, force=False)

    def _force_cancelled(self) -> None:
        now = time.monotonic()
        for running in self._running.values():
            if running.cancelled_at is not None and now - running.cancelled_at > CANCEL_GRACE_S:
                running.cancelled_at = now
                ray.cancel(running.stream, force=True)
                self._kill(running)

    def _kill(self, running: RunningCall) -> None:
        # Ray asks the worker to end itself, which it cannot do while other code holds the interpreter.
        if running.process is None:
            return
        victim = running.process.pid, f"ray::{task_name(running.call)}"
        if running.process.node == self._node:
            kill_process(*victim)
        else:
            there = NodeAffinitySchedulingStrategy(running.process.node, soft=False)
            kill_worker.options(scheduling_strategy=there).remote(*victim)


def _line(error: Exception) -> str:
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}"[:2000]


def main() -> None:
    """Entry point of the child process; its one argument is the descriptor of the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the service decides when its cluster ends
    pipe = Connection(int(sys.argv[1]))
    settings = pipe.recv()
    driver = Driver(pipe, settings)
    try:
        driver.connect(settings)
        driver.serve()
    except Exception as error:
        traceback.print_exc()
        pipe.send(f"Ray failed: {type(error).__name__}: {error}"[:2000])
        sys.stderr.flush()
        os._exit(1)  # ray.shutdown would take a minute if the cluster is gone
    ray.shutdown()


if __name__ == "__main__":
    main()
