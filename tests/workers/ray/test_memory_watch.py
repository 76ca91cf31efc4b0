"""How memory is measured, and two watches at once; test_faults.py has a call that takes too much."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import psutil

from creditgrid.workers.ray.memory_watch import Memory, memory, ray_limit


def test_memory_is_measured_as_ray_does(tmp_path: Path) -> None:
    proc, cgroup = tmp_path / "proc", tmp_path / "cgroup"
    for folder in (proc, cgroup):
        folder.mkdir()
    (proc / "meminfo").write_text("MemTotal: 1000 kB\nMemFree: 100 kB\nMemAvailable: 400 kB\nHugePages_Total: 0\n")
    assert memory(proc, cgroup) == Memory(600 * 1024, 1000 * 1024)
    (cgroup / "memory.max").write_text("max\n")
    assert memory(proc, cgroup) == Memory(600 * 1024, 1000 * 1024)
    (cgroup / "memory.max").write_text("500000\n")
    (cgroup / "memory.current").write_text("300000\n")
    (cgroup / "memory.stat").write_text("anon 1\ninactive_file 1000\nactive_file 200\n")
    assert memory(proc, cgroup) == Memory(298_800, 500_000)
    real = psutil.virtual_memory()
    assert abs(memory(cgroup=tmp_path).used - (real.total - real.available)) < 2**30


def test_rays_limit_is_read_from_the_environment() -> None:
    assert ray_limit(1000, {}) == 950
    assert ray_limit(1000, {"RAY_memory_usage_threshold": "0.5"}) == 500
    assert ray_limit(1000, {"RAY_memory_usage_threshold": "0.5", "RAY_min_memory_free_bytes": "200"}) == 800


TWO_WATCHES = """
import os, psutil, signal, time
from creditgrid.workers.ray import memory_watch
memory_watch.memory = lambda: memory_watch.Memory(used=2, total=1)

def record(process, reason):
    print(process, reason)
    if reason is not None:
        os.kill(process, signal.SIGKILL)  # as the faster watch of another worker does
        while psutil.Process(process).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)

memory_watch.MemoryWatch("call of this test", record).check()
"""


def test_the_slower_of_two_watches_keeps_the_reason_of_the_faster() -> None:
    with subprocess.Popen(["call of this test", "60"], executable="sleep") as call:
        said = subprocess.run([sys.executable, "-c", TWO_WATCHES], capture_output=True, text=True, check=True).stdout
    assert call.returncode == -signal.SIGKILL
    assert said.startswith(f"{call.pid} out of memory: its process {call.pid} ")
    assert len(said.splitlines()) == 1
