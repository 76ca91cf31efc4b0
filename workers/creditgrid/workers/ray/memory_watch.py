"""Kills the largest call of a machine before its memory runs out.

Ray watches the memory too, but kills the calls that started last, several at a time, until enough is free. One call
that takes too much would cost all its younger neighbours, at each attempt. So every worker process watches as well,
with a limit a little below Ray's, and the first that finds the limit passed kills the one call that holds most. This
is often another process's call: while code that takes memory holds the interpreter, no thread of its process runs.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from creditgrid.workers.ray.worker_process import kill_process, process_title

EVERY_S = 0.2
MARGIN, LARGEST_MARGIN = 0.05, 4 * 2**30
"""The limit is below Ray's by this share of the memory, on large machines by these bytes. Only a call that takes memory
faster than we look reaches Ray's limit."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes in use and in total, of the machine or of the container."""

    used: int
    total: int


def memory(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> Memory:
    """The memory as Ray measures it: the container's if its limit is below the machine's. Caches count as free."""
    lines = (line.split() for line in (proc / "meminfo").read_text().splitlines())
    machine = {fields[0].rstrip(":"): 1024 * int(fields[1]) for fields in lines}
    total = machine["MemTotal"]
    for limit, used, prefix in (
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_"),
        ("memory.max", "memory.current", ""),
    ):
        found = (cgroup / limit).read_text().strip() if (cgroup / limit).is_file() else "max"
        if found.isdigit() and int(found) < total:
            stat = dict(line.split() for line in (cgroup / limit).with_name("memory.stat").read_text().splitlines())
            cached = sum(int(stat[f"{prefix}{name}"]) for name in ("inactive_file", "active_file"))
            return Memory(int((cgroup / used).read_text()) - cached, int(found))
    return Memory(total - machine["MemAvailable"], total)


def ray_limit(total: int, environment: Mapping[str, str]) -> float:
    """Bytes in use above which Ray itself kills workers of a node started in this environment."""
    limit = float(environment.get("RAY_memory_usage_threshold", "0.95")) * total
    free = int(environment.get("RAY_min_memory_free_bytes", "-1"))
    return max(limit, total - free) if free > 0 else limit


def watched(environment: Mapping[str, str]) -> bool:
    """Whether Ray's own watch is on, on a node started in this environment, and memory can be measured here."""
    return sys.platform == "linux" and environment.get("RAY_memory_monitor_refresh_ms") != "0"


class MemoryWatch(threading.Thread):
    """Watches the memory until its process ends.

    Calls are the processes of the same parent whose title starts with ``title``. ``record`` takes a process id and the
    reason for killing that process, just before the kill; or None instead of a reason, if it was not killed after all.
    """

    def __init__(self, title: str, record: Callable[[int, str | None], None]) -> None:
        super().__init__(name="creditgrid-memory", daemon=True)
        self._title, self._record = title, record
        total = memory().total
        self._limit = ray_limit(total, os.environ) - min(MARGIN * total, LARGEST_MARGIN)

    def run(self) -> None:
        """Check the memory for ever."""
        while True:
            time.sleep(EVERY_S)
            self.check()

    def check(self) -> None:
        """Kill the largest call, if too much memory is in use."""
        if memory().used <= self._limit:
            return
        sizes = self._sizes()
        now = memory()  # again: the largest call may have ended in the meantime
        if not sizes or now.used <= self._limit:
            return
        (largest, title), size = max(sizes.items(), key=lambda item: item[1])
        self._record(
            largest,
            f"out of memory: its process {largest} held {size / 2**30:.1f} GiB, the most of all calls on its "
            f"machine, when {now.used / 2**30:.1f} of {now.total / 2**30:.1f} GiB were in use there",
        )
        with contextlib.suppress(psutil.NoSuchProcess):
            # A process without a title has ended: another worker was faster, and the reason is right.
            if not kill_process(largest, title) and process_title(psutil.Process(largest)):
                self._record(largest, None)  # it runs another call by now

    def _sizes(self) -> dict[tuple[int, str], int]:
        """Bytes of each call by process and title, without shared memory; empty while the memory of one is freed."""
        sizes: dict[tuple[int, str], int] = {}
        for process in psutil.Process(os.getppid()).children():
            place = Path("/proc") / str(process.pid)
            try:
                resident, shared = (int(field) for field in (place / "statm").read_text().split()[1:3])
                title = process_title(process)
            except (FileNotFoundError, ProcessLookupError, psutil.NoSuchProcess):
                continue
            if resident == 0:  # its memory is being freed, which takes a while: check again after that
                return {}
            if title.startswith(self._title):
                sizes[process.pid, title] = (resident - shared) * os.sysconf("SC_PAGE_SIZE")
        return sizes
