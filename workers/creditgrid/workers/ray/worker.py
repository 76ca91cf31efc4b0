"""What runs in Ray's worker processes: the calls, and what prepares and kills the processes.

The driver imports this module and computes nothing, so torch is imported inside the functions.
"""

from __future__ import annotations

import gc
import os
import time
import traceback
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import ray
import ray.exceptions
from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get, _internal_kv_put

from creditgrid.workers.artifacts import ArtifactStore
from creditgrid.workers.ray.captured_output import process_output
from creditgrid.workers.ray.memory_watch import MemoryWatch, watched
from creditgrid.workers.ray.worker_process import WorkerProcess, die_with_parent, kill_process, this_process
from creditgrid.workers.runner import Call, Failed, Finished

PREFIX = "creditgrid:"
"""The start of our tasks' names. Ray makes a worker's process title from ``ray::`` and the name of its task."""


def task_name(call: Call) -> str:
    """The name of the call's Ray task."""
    return f"{PREFIX}{call.kind}-{call.id}"


def take_kill_reason(process: WorkerProcess) -> str | None:
    """Why a memory watch killed the process, if one did; the reason is read once."""
    key = _kill_reason_key(process.node, process.pid)
    reason = _internal_kv_get(key)
    if reason is None:
        return None
    _internal_kv_del(key)
    return str(reason.decode())


def _kill_reason_key(node: str, pid: int) -> str:
    return f"creditgrid/killed/{node}/{pid}"


@cache  # once in each process
def prepare() -> None:
    """Prepare this process to run calls."""
    die_with_parent()
    node = ray.get_runtime_context().get_node_id()

    def record(pid: int, reason: str | None) -> None:
        key = _kill_reason_key(node, pid)
        try:
            if reason is None:
                _internal_kv_del(key)
            else:
                _internal_kv_put(key, reason.encode())
        except ray.exceptions.RayError:
            traceback.print_exc()  # memory must be freed, even if the reason cannot be recorded

    if watched(os.environ):
        MemoryWatch(f"ray::{PREFIX}", record).start()


@cache  # once in each process
def load() -> None:
    """Import what calls need, and leave it out of later garbage collections."""
    import creditgrid.workers.execute  # noqa: F401
    from creditgrid.core.experiments.registry import registry

    registry()
    # torch leaves hundreds of thousands of objects: visiting them took half the time of calls of many small cells.
    gc.collect()
    gc.freeze()


@ray.remote(num_returns="streaming", max_retries=0, max_calls=0)  # type: ignore[untyped-decorator]
def run_call(call: Call, root: str, *arrays: Any) -> Iterator[Any]:
    """Yield the process, then the call's messages; an artifact is its key and size, followed by its arrays."""
    yield from _run(call, root, arrays)


@ray.remote(num_returns="streaming", max_retries=0, max_calls=1)  # type: ignore[untyped-decorator]
def run_call_with_code(call: Call, root: str, *arrays: Any) -> Iterator[Any]:
    """As `run_call`. Then the process ends, so that what the code has changed in it, such as torch's default dtype,
    reaches no other call."""
    yield from _run(call, root, arrays)


def _run(call: Call, root: str, arrays: Sequence[Any]) -> Iterator[Any]:
    prepare()
    load()
    import torch

    from creditgrid.workers.execute import execute

    end: Finished | Failed | None = None
    with process_output().captured(Path(root), call.log, call.attempt):
        yield this_process(ray.get_runtime_context().get_node_id())
        device = torch.device("cuda" if ray.get_gpu_ids() else "cpu")
        inputs = dict(zip(call.inputs, arrays, strict=True))
        for item in execute(call, inputs, ArtifactStore(Path(root)), device):
            if isinstance(item, tuple):
                key, made = item
                yield key, sum(array.nbytes for array in made.values())
                yield made
            elif isinstance(item, Finished | Failed):
                end = item
            else:
                yield item
    yield end  # now the log is complete, and free for another attempt


@ray.remote(max_retries=0)  # type: ignore[untyped-decorator]
def warm_up() -> None:
    """Load what calls need, before the first call has to wait for it."""
    prepare()
    import torch

    torch.optim.AdamW([torch.zeros(1, requires_grad=True)])  # the first optimiser of a process imports for seconds
    load()
    time.sleep(0.5)  # long enough that the worker of every core gets one of these tasks


@ray.remote(num_cpus=0, max_retries=0)  # type: ignore[untyped-decorator]
def kill_worker(pid: int, title: str) -> None:
    """Kill a worker of the node that this runs on."""
    kill_process(pid, title)
