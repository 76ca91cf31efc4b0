"""Loaded at its start by every Python process of a Ray cluster: its machine is small, and its workers alone fill it.

So the memory watch acts on what the workers of one test hold, whatever runs beside them.
"""

from __future__ import annotations

import os

import psutil

from creditgrid.workers.ray import memory_watch

TOTAL = int(os.environ["CREDITGRID_TEST_MEMORY"])


def memory() -> memory_watch.Memory:
    """What the processes of this worker's node hold, of ``TOTAL`` bytes; what they share is left out."""
    used = 0
    for process in psutil.Process(os.getppid()).children():
        try:
            held = process.memory_info()
        except psutil.NoSuchProcess:
            continue
        used += held.rss - held.shared
    return memory_watch.Memory(used, TOTAL)


memory_watch.memory = memory
