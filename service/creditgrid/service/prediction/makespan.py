"""The time in which a cluster does calls that depend on each other: each starts as soon as it is ready and has room.

Calls that are alike are counted, not listed. A call waits for its share of the calls on lower levels: the second of six
fits for the first of three trainings. This follows sweeps over seeds, and needs no list of what waits for what.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from creditgrid.core.task import Resources

LEAST, ROUNDS, MOST = 48, 16, 512
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


@dataclass(slots=True, eq=False)
class _Queue:
    """A batch in the simulation, and those on lower levels."""

    level: int
    planned: int
    open: int
    seconds: float
    cpu: float
    gpu: float
    done: int
    below: list[_Queue] = field(default_factory=list)

    def may_start(self, part: float) -> bool:
        """Whether as large a part of each lower batch is done."""
        return all(other.done >= part * other.planned - 1e-9 for other in self.below if other.done < other.planned)


def makespan(batches: Sequence[Batch], running: Sequence[Running], cpus: float, gpus: float) -> float:
    """Seconds until all calls have ended, on a cluster that does nothing else."""
    queues = [_queue(batch, cpus, gpus) for batch in batches]
    for queue in queues:
        queue.below = [other for other in queues if other.level < queue.level]
    free_cpu, free_gpu, now = cpus, gpus, 0.0
    ends: list[tuple[float, int, float, float, _Queue]] = []
    for number, call in enumerate(running):
        cpu, gpu = min(call.resources.cpu, cpus), min(call.resources.gpu, gpus)
        free_cpu, free_gpu = free_cpu - cpu, free_gpu - gpu
        heapq.heappush(ends, (call.seconds, number, cpu, gpu, queues[call.batch]))
    number = len(ends)
    opened = [queue for queue in queues if queue.open]
    while opened or ends:
        ready = _next(opened, free_cpu + 1e-9, free_gpu + 1e-9)
        if ready is not None:
            ready.open -= 1
            free_cpu, free_gpu, number = free_cpu - ready.cpu, free_gpu - ready.gpu, number + 1
            heapq.heappush(ends, (now + ready.seconds, number, ready.cpu, ready.gpu, ready))
            if not ready.open:
                opened.remove(ready)
        elif ends:
            now, _, cpu, gpu, ended = heapq.heappop(ends)
            free_cpu, free_gpu = free_cpu + cpu, free_gpu + gpu
            ended.done += 1
        else:  # calls that wait for what has failed
            return now + sum(queue.open * queue.seconds for queue in opened)
    return now


def _next(opened: Sequence[_Queue], free_cpu: float, free_gpu: float) -> _Queue | None:
    """Of the calls that are ready and have room, the one that is least far in its batch."""
    found: _Queue | None = None
    first = 2.0, 0
    for queue in opened:
        turn = (queue.planned - queue.open + 1) / queue.planned, queue.level
        if turn < first and queue.cpu <= free_cpu and queue.gpu <= free_gpu and queue.may_start(turn[0]):
            found, first = queue, turn
    return found


def _queue(batch: Batch, cpus: float, gpus: float) -> _Queue:
    cpu, gpu = min(batch.resources.cpu, cpus), min(batch.resources.gpu, gpus)
    most = min(max(LEAST, math.ceil(ROUNDS * cpus / max(cpu, 0.1))), MOST)
    together = max(1, math.ceil(batch.open / most))
    opened = math.ceil(batch.open / together)
    done = math.ceil(max(0, batch.planned - batch.open - batch.running) / together)
    seconds = batch.seconds * batch.open / max(opened, 1)
    return _Queue(batch.level, opened + batch.running + done or 1, opened, seconds, cpu, gpu, done)
