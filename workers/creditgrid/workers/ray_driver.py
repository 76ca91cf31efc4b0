"""The Ray driver: a process of its own, child of the service. The one file that imports ray.

It joins (or starts) a cluster, turns calls into Ray tasks, and holds the references of artifacts by key, so that
checkpoints, estimators, fixed batches and datasets reach workers through the object store: put once, passed by
reference, mapped without copying. The references are a cache of the artifact store, bounded in bytes; what is not
there, or was lost with a node, is loaded from the artifact again.

A call is a streaming generator: progress comes live, each artifact is a return value of its own (so it outlives the
worker process), and the last item says how the call ended. Ray's own retries are off: the scheduler counts attempts.
"""

# torch and what imports it stand where workers use them: the driver computes nothing.

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
import traceback
from collections import OrderedDict
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import ray
import ray.exceptions

from creditgrid.core.errors import ArtifactError
from creditgrid.core.task import Resources
from creditgrid.workers.artifacts import ArtifactStore
from creditgrid.workers.runner import Call, Capacity, Failed, Finished

CACHE_FRACTION = 0.5
"""The share of the object store that artifacts kept for later calls may take."""
CAPACITY_EVERY_S = 5.0
CANCEL_GRACE_S = 3.0
"""A call that has not heeded its cancellation by then loses its worker."""


@ray.remote(num_returns="streaming", max_retries=0, max_calls=0)  # type: ignore[untyped-decorator]
def run_call(call: Call, root: str, *arrays: Any) -> Iterator[Any]:
    """On a worker: the call's messages; an artifact comes as its key and size, and then its arrays."""
    import torch

    from creditgrid.workers.tasks import execute

    device = torch.device("cuda" if ray.get_gpu_ids() else "cpu")
    inputs = dict(zip(call.inputs, arrays, strict=True))
    for item in execute(call, inputs, ArtifactStore(Path(root)), device):
        if isinstance(item, tuple):
            key, made = item
            yield key, sum(array.nbytes for array in made.values())
            yield made
        else:
            yield item


@ray.remote(max_retries=0)  # type: ignore[untyped-decorator]
def warm() -> None:
    """On a worker: pay for imports before the first call does."""
    import torch

    import creditgrid.workers.tasks  # noqa: F401

    torch.optim.AdamW([torch.zeros(1, requires_grad=True)])  # the first optimiser of a process imports for seconds
    time.sleep(0.5)  # long enough that every core's worker is asked


class Driver:
    """One connection to a cluster, until the pipe closes."""

    def __init__(self, pipe: Connection, settings: dict[str, Any]) -> None:
        self._pipe, self._store = pipe, ArtifactStore(Path(settings["store"]))
        self._commands: SimpleQueue[tuple[Any, ...]] = SimpleQueue()
        self._running: dict[Any, Call] = {}  # generator → call
        self._expecting: dict[Any, tuple[str, int]] = {}  # generator → the artifact that comes next
        self._cancelling: dict[int, float] = {}
        self._kept: OrderedDict[str, tuple[Any, int]] = OrderedDict()
        self._largest = Resources(0.0, 0.0)  # the most CPUs, and the most GPUs, that a node has
        self._cache_bytes = 0

    def connect(self, settings: dict[str, Any]) -> None:
        """Join the cluster at the address, or start one on this machine."""
        options: dict[str, Any] = {"log_to_driver": False, "configure_logging": True, "logging_level": "warning"}
        if settings["address"]:
            ray.init(address=settings["address"], **options)
        else:
            ray.init(include_dashboard=False, num_cpus=settings["cpus"], num_gpus=settings["gpus"], **options)
        resources = ray.cluster_resources()
        self._cache_bytes = int(resources.get("object_store_memory", 2**30) * CACHE_FRACTION)
        for _ in range(int(resources.get("CPU", 1))):
            warm.remote()

    def serve(self) -> None:
        """Answer until the pipe closes or stop is asked."""
        threading.Thread(target=self._read, name="creditgrid-pipe", daemon=True).start()
        told = -CAPACITY_EVERY_S
        while True:
            if time.monotonic() - told > CAPACITY_EVERY_S:
                told = time.monotonic()
                self._pipe.send(self._capacity())
            try:
                while True:
                    command = self._commands.get(timeout=0 if self._running else 0.5)
                    if command[0] == "stop":
                        return
                    if command[0] == "submit":
                        self._submit(command[1])
                    else:
                        self._cancel(command[1])
            except Empty:
                pass
            self._harvest()
            self._force_cancelled()

    def _read(self) -> None:
        try:
            while True:
                self._commands.put(self._pipe.recv())
        except (EOFError, OSError):
            # The service is gone, perhaps killed: end at once, and let Ray's reaper end the cluster that was ours.
            with contextlib.suppress(Exception):
                ray.shutdown()
            os._exit(0)

    def _capacity(self) -> Capacity:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        cpus, gpus = ([node.get(name, 0.0) for node in nodes] for name in ("CPU", "GPU"))
        self._largest = Resources(max(cpus, default=0.0), max(gpus, default=0.0))
        return Capacity(sum(cpus), sum(gpus), len(nodes))

    def _submit(self, call: Call) -> None:
        # A call that asks for more than any node has would wait for ever: it gets what the largest has, and without
        # a GPU in the cluster everything runs on the CPU. A cluster that has no CPU yet is waited for.
        cpus = min(call.resources.cpu, self._largest.cpu) if self._largest.cpu else call.resources.cpu
        gpus = min(call.resources.gpu, self._largest.gpu)
        try:
            arrays = [self._reference(key) for key in call.inputs]
            remote = run_call.options(num_cpus=cpus, num_gpus=gpus, name=f"{call.kind}-{call.id}")
            generator = remote.remote(call, str(self._store.root), *arrays)
        except (ArtifactError, OSError, ValueError, ray.exceptions.RayError) as error:
            # An input cannot be read or held, or the resources cannot be had: this call fails, and no other.
            again = isinstance(error, OSError | ray.exceptions.RayError) or isinstance(error.__cause__, OSError)
            self._pipe.send(Failed(call.id, _line(error), traceback.format_exc(), again))
            return
        self._running[generator] = call

    def _reference(self, key: str) -> Any:
        if key not in self._kept:
            arrays = self._store.load(key)
            self._keep(key, ray.put(arrays), sum(array.nbytes for array in arrays.values()))
        self._kept.move_to_end(key)
        return self._kept[key][0]

    def _keep(self, key: str, reference: Any, size: int) -> None:
        self._kept[key] = reference, size
        self._kept.move_to_end(key)
        total = sum(size for _, size in self._kept.values())
        while total > self._cache_bytes and len(self._kept) > 1:
            total -= self._kept.popitem(last=False)[1][1]

    def _harvest(self) -> None:
        if not self._running:
            return
        pending = list(self._running)
        ready, _ = ray.wait(pending, num_returns=len(pending), timeout=0, fetch_local=False)
        if not ready:
            ready, _ = ray.wait(pending, num_returns=1, timeout=0.02, fetch_local=False)
        for generator in ready:
            call = self._running[generator]
            try:
                reference = next(generator)
                if generator in self._expecting:
                    key, size = self._expecting.pop(generator)
                    self._keep(key, reference, size)
                    continue
                item = ray.get(reference)
            except StopIteration:
                cancelled = call.id in self._cancelling
                self._drop(generator)
                text = "cancelled" if cancelled else "the worker ended the call without saying how"
                self._pipe.send(Failed(call.id, text, "", transient=not cancelled))
                continue
            except (ray.exceptions.RayError, OSError) as error:
                failed = self._failed(call, error)
                self._drop(generator)
                self._pipe.send(failed)
                continue
            if isinstance(item, tuple):
                self._expecting[generator] = item
                continue
            if isinstance(item, Finished | Failed):
                self._drop(generator)
            self._pipe.send(item)

    def _drop(self, generator: Any) -> None:
        call = self._running.pop(generator)
        self._expecting.pop(generator, None)
        self._cancelling.pop(call.id, None)

    def _failed(self, call: Call, error: Exception) -> Failed:
        if call.id in self._cancelling or isinstance(error, ray.exceptions.TaskCancelledError):
            return Failed(call.id, "cancelled", "", transient=False)
        if isinstance(error, ray.exceptions.OutOfMemoryError):
            text = f"out of memory: the worker was ended because its machine ran short of memory ({error})"
            return Failed(call.id, " ".join(text.split())[:2000], "", transient=True)
        # Whatever was lost with a worker or node is read from the artifact store the next time.
        for key in call.inputs:
            self._kept.pop(key, None)
        # What a worker raised was raised by our code there, or by Ray on the way to it.
        cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
        transient = isinstance(cause, OSError | ray.exceptions.RayError)
        return Failed(call.id, _line(error), str(error)[:20000], transient)

    def _cancel(self, call_id: int) -> None:
        for generator, call in self._running.items():
            if call.id == call_id and call_id not in self._cancelling:
                self._cancelling[call_id] = time.monotonic()
                ray.cancel(generator, force=False)

    def _force_cancelled(self) -> None:
        now = time.monotonic()
        for generator, call in self._running.items():
            if now - self._cancelling.get(call.id, now) > CANCEL_GRACE_S:
                self._cancelling[call.id] = now
                ray.cancel(generator, force=True)


def _line(error: Exception) -> str:
    first = (str(error).strip().splitlines() or [""])[0]
    return first if isinstance(error, ArtifactError) else f"{type(error).__name__}: {first}"[:2000]


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
        raise
    finally:
        ray.shutdown()


if __name__ == "__main__":
    # Run as a module the functions above would be pickled as __main__'s, which workers do not have.
    from creditgrid.workers import ray_driver

    ray_driver.main()
