"""Loaded at its start by every Python process of a Ray cluster: a small machine that its workers alone fill.

So the memory watch measures the workers of one test, whatever else runs on the machine.
"""

from __future__ import annotations

import os

import psutil

from creditgrid.workers.ray import memory_watch

TOTAL = int(os.environ["CREDITGRID_TEST_MEMORY"])


def memory() -> memory_watch.Memory:
    """The memory of the processes of this worker's node, without shared memory, of ``TOTAL`` bytes."""
    used = 0
    for process in psutil.Process(os.getppid()).children():
        try:
            held = process.memory_info()
        except psutil.NoSuchProcess:
            continue
        used += held.rss - held.shared
    return memory_watch.Memory(used, TOTAL)


memory_watch.memory = memory
