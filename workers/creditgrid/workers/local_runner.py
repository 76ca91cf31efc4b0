"""The in-process runner: calls run on threads of this process. For tests, and for machines where Ray cannot start."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

import torch

from creditgrid.core.task import Arrays
from creditgrid.workers.artifacts import ArtifactStore
from creditgrid.workers.execute import execute
from creditgrid.workers.inputs import ArtifactCache, load_inputs
from creditgrid.workers.runner import Call, Capacity, Failed, Finished, Message, drain
from creditgrid.workers.thread_output import ThreadOutput

CACHE_BYTES = 2**30
"""Artifacts that stay in memory between calls."""


class LocalRunner:
    """Runs up to ``workers`` calls at a time on threads; see ``runner.Runner``.

    A thread cannot be stopped from outside: a cancelled call ends at the next item that it yields. A call that hangs,
    or computes without yielding, keeps its thread, and ``stop`` waits for it. Nor is a thread a process of its own: a
    call that crashes (``os._exit``, a segmentation fault) or takes all memory ends the service too.
    """

    def __init__(self, store: ArtifactStore, workers: int = 1) -> None:
        self._store, self._workers = store, workers
        self._messages: SimpleQueue[Message] = SimpleQueue()
        self._cancelled: set[int] = set()
        self._active: set[int] = set()
        self._lock = threading.Lock()
        self._cache: ArtifactCache[Arrays] = ArtifactCache(CACHE_BYTES)
        self._pool: ThreadPoolExecutor | None = None
        self._output = ThreadOutput()

    def start(self) -> None:
        self._output.start()
        self._pool = ThreadPoolExecutor(self._workers, thread_name_prefix="creditgrid-local")

    def capacity(self) -> Capacity:
        return Capacity(cpu=float(self._workers), gpu=0.0, nodes=1)

    def submit(self, call: Call) -> None:
        assert self._pool is not None, "start() comes first"
        with self._lock:
            self._active.add(call.id)
        self._pool.submit(self._run, call)

    def poll(self, timeout: float) -> list[Message]:
        return drain(self._messages, timeout)

    def cancel(self, call: int) -> None:
        with self._lock:
            if call in self._active:
                self._cancelled.add(call)

    def stop(self) -> None:
        with self._lock:
            self._cancelled |= self._active
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None
            self._output.stop()

    def _run(self, call: Call) -> None:
        with self._output.captured(self._store.root, call.log, call.attempt):
            end = self._compute(call)
        self._messages.put(end)  # now its log is complete, and free for another attempt

    def _compute(self, call: Call) -> Finished | Failed:
        try:
            loaded = load_inputs(call, self._load)
            if isinstance(loaded, Failed):
                return loaded
            inputs = dict(zip(call.inputs, loaded, strict=True))
            for item in execute(call, inputs, self._store, torch.device("cpu")):
                if isinstance(item, tuple):
                    self._keep(*item)
                    continue
                if call.id in self._cancelled and not isinstance(item, Failed):
                    item = Failed(call.id, "cancelled", "", transient=False)  # noqa: PLW2901
                if isinstance(item, Finished | Failed):
                    return item
                self._messages.put(item)
            raise AssertionError("the last item is Finished or Failed")
        finally:
            with self._lock:
                self._active.discard(call.id)
                self._cancelled.discard(call.id)

    def _load(self, key: str) -> Arrays:
        with self._lock:
            cached = self._cache.get(key)
        if cached is not None:
            return cached
        arrays = self._store.load(key)
        self._keep(key, arrays)
        return arrays

    def _keep(self, key: str, arrays: Arrays) -> None:
        with self._lock:
            self._cache.put(key, arrays, sum(array.nbytes for array in arrays.values()))
