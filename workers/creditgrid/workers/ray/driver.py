"""The Ray driver: a process of its own, child of the service. The one file that imports ray.

It joins (or starts) a cluster, turns calls into Ray tasks, and holds the references of artifacts by key, so that
checkpoints, estimators, fixed batches and datasets reach workers through the object store: put once, passed by
reference, mapped without copying. The references are a cache of the artifact store, bounded in bytes; what is not
there, or was lost with a node, is loaded from the artifact again.

A call is a streaming generator: progress comes live, each artifact is a return value of its own (so it outlives the
worker process), and the last item says how the call ended. Ray's own retries are off: the scheduler counts attempts.

A thread of its own tells the service every few seconds what the cluster has. It asks the cluster for that, and stays
silent when the driver's main loop hangs: a service that hears nothing takes the cluster for lost, and this process with
it.
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
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import ray
import ray.exceptions
from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get, _internal_kv_put
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from creditgrid.workers.artifacts import ArtifactStore
from creditgrid.workers.inputs import load_inputs
from creditgrid.workers.ray.memory_watch import MemoryWatch, watched
from creditgrid.workers.ray.nodes import Nodes
from creditgrid.workers.ray.reference_cache import ReferenceCache
from creditgrid.workers.ray.worker_process import Place, end_process, end_with_parent, here, obituary
from creditgrid.workers.runner import Call, Capacity, Failed, Finished, Message

CACHE_FRACTION = 0.5
"""The share of the object store that artifacts kept for later calls may take."""
BEAT_S = 2.0
STALLED_S = 10.0
"""A main loop that has not come round for so long, while it is not loading an artifact, hangs in a call of Ray's."""
CANCEL_GRACE_S = 2.0
"""A call that has not heeded its cancellation by then loses its worker."""
FETCH_S = 5.0
"""A message that cannot be had for so long was lost with the node that holds it."""
FAREWELL_S = 10.0
NAME = "creditgrid:"
"""Begins the names of our tasks; Ray makes a worker's process title ``ray::`` and the name of its task."""


def _name(call: Call) -> str:
    return f"{NAME}{call.kind}-{call.id}"


def _word(node: str, pid: int) -> str:
    """The cluster-wide name of what is said about the end of a process."""
    return f"creditgrid/ended/{node}/{pid}"


@cache  # once a process
def prepare_worker() -> None:
    """On a worker: what every process that runs our calls does once."""
    end_with_parent()
    node = ray.get_runtime_context().get_node_id()

    def tell(pid: int, why: str | None) -> None:
        try:
            if why is None:
                _internal_kv_del(_word(node, pid))
            else:
                _internal_kv_put(_word(node, pid), why.encode(), overwrite=True)
        except ray.exceptions.RayError:
            traceback.print_exc()  # memory must be freed, also where nobody can be told why

    if watched(os.environ):
        MemoryWatch(f"ray::{NAME}", tell).start()


@ray.remote(num_returns="streaming", max_retries=0, max_calls=0)  # type: ignore[untyped-decorator]
def run_call(call: Call, root: str, *arrays: Any) -> Iterator[Any]:
    """On a worker: where it runs, and the call's messages; an artifact comes as its key and size, then its arrays."""
    prepare_worker()
    import torch

    from creditgrid.workers.execute import execute

    yield here(ray.get_runtime_context().get_node_id())
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
    prepare_worker()
    import torch

    import creditgrid.workers.execute  # noqa: F401

    torch.optim.AdamW([torch.zeros(1, requires_grad=True)])  # the first optimiser of a process imports for seconds
    time.sleep(0.5)  # long enough that every core's worker is asked


@ray.remote(num_cpus=0, max_retries=0)  # type: ignore[untyped-decorator]
def end_elsewhere(pid: int, title: str) -> None:
    """On the node of a worker that does not end."""
    end_process(pid, title)


@dataclass(slots=True, eq=False)
class Flight:
    """A call that Ray has."""

    call: Call
    stream: Any
    place: Place | None = None
    coming: tuple[str, int] | None = None  # the artifact that comes next: key and bytes
    cancelled: float | None = None  # when its end was last asked for

    def awaited(self) -> Any:
        """What is ready when there is something to do for the flight.

        The stream of a cancelled call ends at once, but reading on would block until its worker is through.
        """
        return self.stream if self.cancelled is None else self.stream.completed()


class Driver:
    """One connection to a cluster, until the pipe closes."""

    def __init__(self, pipe: Connection, settings: dict[str, Any]) -> None:
        self._pipe, self._store = pipe, ArtifactStore(Path(settings["store"]))
        self._pipe_lock = threading.Lock()
        self._commands: SimpleQueue[tuple[Any, ...]] = SimpleQueue()
        self._flights: dict[int, Flight] = {}
        self._kept = ReferenceCache(0)
        self._nodes = Nodes()
        self._node = ""  # the one this process is on
        self._moved = time.monotonic()  # when the main loop last came round
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
        self._kept = ReferenceCache(int(resources.get("object_store_memory", 2**30) * CACHE_FRACTION))
        for _ in range(int(resources.get("CPU", 1))):
            warm.remote()

    def serve(self) -> None:
        """Answer until the pipe closes or stop is asked."""
        threading.Thread(target=self._read, name="creditgrid-pipe", daemon=True).start()
        beat = threading.Thread(target=self._beat, name="creditgrid-beat", daemon=True)
        beat.start()
        self._work()
        self._closing.set()
        beat.join(FAREWELL_S)  # it must not ask a cluster that we have left

    def _work(self) -> None:
        while True:
            self._moved = time.monotonic()
            try:
                while True:
                    command = self._commands.get(timeout=0 if self._flights else 0.5)
                    if command[0] == "stop":
                        return
                    if command[0] == "submit":
                        self._submit(command[1])
                    else:
                        self._cancel(command[1])
                    self._moved = time.monotonic()
            except Empty:
                pass
            if self._nodes.lost():
                self._kept.clear()  # who knows what lay there; whoever needs it reads the artifact store
            self._harvest()
            self._force_cancelled()

    def _tell(self, message: Message | Capacity | str) -> None:
        with self._pipe_lock:
            self._pipe.send(message)

    def _read(self) -> None:
        try:
            while True:
                self._commands.put(self._pipe.recv())
        except (EOFError, OSError):
            # The service is gone, perhaps killed: end at once, and with us the cluster that was ours.
            threading.Timer(FAREWELL_S, os._exit, [0]).start()  # where the cluster is gone too, shutdown may block
            with contextlib.suppress(Exception):
                ray.shutdown()
            os._exit(0)

    def _beat(self) -> None:
        missed = 0
        while not self._closing.is_set():
            self._nodes.refresh(ray.nodes())  # blocks while there is no GCS
            missed = missed + 1 if self._nodes.gone(self._node) else 0
            if missed == 2:  # one may be a busy machine's
                self._tell("the Ray node of this machine is gone")
                os._exit(1)
            if self._loading or time.monotonic() - self._moved < STALLED_S:
                self._tell(self._nodes.capacity())
            self._closing.wait(BEAT_S)

    def _submit(self, call: Call) -> None:
        self._loading = True
        try:
            arrays = load_inputs(call, self._reference)
        finally:
            self._loading = False
        if isinstance(arrays, Failed):
            self._tell(arrays)
            return
        # A call that asks for more than any node has would wait for ever: it gets what the largest has, and without
        # a GPU in the cluster everything runs on the CPU. A cluster that has no CPU yet is waited for.
        cpus = min(call.resources.cpu, self._nodes.largest("CPU") or call.resources.cpu)
        gpus = min(call.resources.gpu, self._nodes.largest("GPU"))
        try:
            remote = run_call.options(num_cpus=cpus, num_gpus=gpus, name=_name(call))
            stream = remote.remote(call, str(self._store.root), *arrays)
        except ValueError as error:  # resources that cannot be had: this call fails, and no other
            self._tell(Failed(call.id, _line(error), traceback.format_exc(), transient=False))
            return
        except ray.exceptions.RayError as error:  # a long call goes through the object store, which may be full
            self._tell(Failed(call.id, _line(error), traceback.format_exc(), transient=True))
            return
        self._flights[call.id] = Flight(call, stream)

    def _reference(self, key: str) -> Any:
        kept = self._kept.get(key)
        if kept is not None:
            return kept
        arrays = self._store.load(key)
        try:
            reference = ray.put(arrays)
        except ray.exceptions.RayError as error:
            raise OSError(f"the object store takes no more: {_line(error)}") from error
        self._kept.keep(key, reference, sum(array.nbytes for array in arrays.values()))
        return reference

    def _harvest(self) -> None:
        if not self._flights:
            return
        pending = {flight.awaited(): flight for flight in self._flights.values()}
        ready, _ = ray.wait(list(pending), num_returns=len(pending), timeout=0, fetch_local=False)
        if not ready:
            ready, _ = ray.wait(list(pending), num_returns=1, timeout=0.02, fetch_local=False)
        for found in ready:
            self._moved = time.monotonic()  # what was lost is waited for, for seconds
            flight = pending[found]
            if flight.cancelled is not None:
                self._end(Failed(flight.call.id, "cancelled", "", transient=False))
                continue
            try:
                self._take(flight)
            except StopIteration:
                text = "the worker ended the call without saying how"
                self._end(Failed(flight.call.id, text, "", transient=True))
            except (ray.exceptions.RayError, OSError) as error:
                self._end(self._failed(flight, error))

    def _take(self, flight: Flight) -> None:
        """The next item of a stream that has one."""
        reference = next(flight.stream)
        if flight.coming is not None:
            (key, size), flight.coming = flight.coming, None
            self._kept.keep(key, reference, size)
            return
        item = ray.get(reference, timeout=FETCH_S)
        if isinstance(item, Place):
            flight.place = item
        elif isinstance(item, tuple):
            flight.coming = item
        elif isinstance(item, Finished | Failed):
            self._end(item)
        else:
            self._tell(item)

    def _end(self, message: Finished | Failed) -> None:
        del self._flights[message.call]
        self._tell(message)

    def _failed(self, flight: Flight, error: Exception) -> Failed:
        call = flight.call
        if isinstance(error, ray.exceptions.TaskCancelledError):
            return Failed(call.id, "cancelled", "", transient=False)
        # Whatever was lost with a worker or node is read from the artifact store the next time.
        self._kept.drop([*call.inputs, *(task.key for task in call.tasks)])
        if isinstance(error, ray.exceptions.OutOfMemoryError):
            text = f"out of memory: Ray ended its process because its machine ran short of memory ({error})"
            return Failed(call.id, " ".join(text.split())[:2000], "", transient=True, crashed=True)
        if isinstance(error, ray.exceptions.WorkerCrashedError | ray.exceptions.NodeDiedError):
            return self._died(call, flight.place)
        # What a worker raised was raised by our code there, or by Ray on the way to it.
        cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
        transient = isinstance(cause, OSError | ray.exceptions.RayError)
        return Failed(call.id, _line(error), str(error)[:20000], transient)

    def _died(self, call: Call, place: Place | None) -> Failed:
        if place is not None:
            if why := _internal_kv_get(_word(place.node, place.pid)):
                _internal_kv_del(_word(place.node, place.pid))
                return Failed(call.id, why.decode(), "", transient=True, host=place.host, crashed=True)
            if self._nodes.gone(place.node):
                self._kept.clear()
                text = f"the Ray node on {place.host} was lost, and with it the call's process {place.pid}"
                return Failed(call.id, text, "", transient=True, host=place.host)
        text, words = obituary(place)
        return Failed(call.id, text, words, transient=True, host=place.host if place else None, crashed=True)

    def _cancel(self, call_id: int) -> None:
        flight = self._flights.get(call_id)
        if flight is not None and flight.cancelled is None:
            flight.cancelled = time.monotonic()
            ray.cancel(flight.stream, force=False)

    def _force_cancelled(self) -> None:
        now = time.monotonic()
        for flight in self._flights.values():
            if flight.cancelled is not None and now - flight.cancelled > CANCEL_GRACE_S:
                flight.cancelled = now
                ray.cancel(flight.stream, force=True)
                self._kill(flight)

    def _kill(self, flight: Flight) -> None:
        # Ray asks the worker to end itself, which code that holds the interpreter does not let it do.
        if flight.place is None:
            return
        process = flight.place.pid, f"ray::{_name(flight.call)}"
        if flight.place.node == self._node:
            end_process(*process)
        else:
            there = NodeAffinitySchedulingStrategy(flight.place.node, soft=False)
            end_elsewhere.options(scheduling_strategy=there).remote(*process)


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
        os._exit(1)  # without a farewell: to a cluster that is gone it takes a minute
    ray.shutdown()


if __name__ == "__main__":
    # Run as a module the functions above would be pickled as __main__'s, which workers do not have.
    from creditgrid.workers.ray import driver as ray_driver

    ray_driver.main()
