"""The time in which a cluster does calls that depend on each other: each starts as soon as it is ready and has room.

Calls that are alike are counted, not listed. A call waits for its share of the calls on lower levels: the second of six
fits for the first of three trainings. This follows sweeps over seeds, and needs no list of what waits for what.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from creditgrid.core.task import Resources

LEAST, ROUNDS, MOST = 64, 24, 512
"""Calls of one batch that are followed one by one: so many rounds on all slots, within bounds. Of more, several count
as one."""


class Batch(NamedTuple):
    """Calls that are alike: ``open`` of ``planned`` have not started, and ``running`` run."""

    level: int
    planned: int
    open: int
    seconds: float
    """Of each."""
    resources: Resources
    running: int = 0


class Running(NamedTuple):
    """A call that runs: the number of its batch, and the seconds that it has left."""

    batch: int
    seconds: float
    resources: Resources


@dataclass(slots=True)
class _Queue:
    """A batch in the simulation."""

    level: int
    planned: int
    open: int
    seconds: float
    cpu: float
    gpu: float
    done: int

    @property
    def next(self) -> float:
        """How far the next call is in its batch, in (0, 1]."""
        return (self.planned - self.open + 1) / self.planned


def makespan(batches: Sequence[Batch], running: Sequence[Running], cpus: float, gpus: float) -> float:
    """Seconds until all calls have ended, on a cluster that does nothing else."""
    queues = [_queue(batch, cpus, gpus) for batch in batches]
    free_cpu, free_gpu, now = cpus, gpus, 0.0
    ends: list[tuple[float, int, float, float, int]] = []
    for number, call in enumerate(running):
        cpu, gpu = min(call.resources.cpu, cpus), min(call.resources.gpu, gpus)
        free_cpu, free_gpu = free_cpu - cpu, free_gpu - gpu
        heapq.heappush(ends, (call.seconds, number, cpu, gpu, call.batch))
    number = len(ends)
    while True:
        ready = [
            queue
            for queue in queues
            if queue.open
            and queue.cpu <= free_cpu + 1e-9
            and queue.gpu <= free_gpu + 1e-9
            and _may_start(queue, queues)
        ]
        if ready:
            queue = min(ready, key=lambda queue: (queue.next, queue.level))
            queue.open -= 1
            free_cpu, free_gpu, number = free_cpu - queue.cpu, free_gpu - queue.gpu, number + 1
            heapq.heappush(ends, (now + queue.seconds, number, queue.cpu, queue.gpu, queues.index(queue)))
        elif ends:
            now, _, cpu, gpu, batch = heapq.heappop(ends)
            free_cpu, free_gpu = free_cpu + cpu, free_gpu + gpu
            queues[batch].done += 1
        else:
            return now + sum(queue.open * queue.seconds for queue in queues)  # of calls that wait for others' failures


def _queue(batch: Batch, cpus: float, gpus: float) -> _Queue:
    cpu, gpu = min(batch.resources.cpu, cpus), min(batch.resources.gpu, gpus)
    most = min(max(LEAST, math.ceil(ROUNDS * cpus / max(cpu, 0.1))), MOST)
    together = max(1, math.ceil(batch.open / most))
    opened = math.ceil(batch.open / together)
    done = max(0, batch.planned - batch.open - batch.running)
    planned = opened + batch.running + math.ceil(done / together)
    seconds = batch.seconds * batch.open / max(opened, 1)
    return _Queue(batch.level, max(planned, 1), opened, seconds, cpu, gpu, planned - opened - batch.running)


def _may_start(queue: _Queue, queues: Sequence[_Queue]) -> bool:
    """Whether so much of each lower level is done as the next call needs."""
    return all(
        other.done >= math.ceil(queue.next * other.planned - 1e-9) for other in queues if other.level < queue.level
    )
