"""Limits of a process that imports brought code: memory, time, and no further processes.

They protect the service from accidents: an endless loop, a fork bomb, a table that is too large. They are no wall
against an attacker: the code runs as the service's user, as it also does in the workers.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import re
import resource
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from creditgrid.core.contract.limits import refuse_processes
from creditgrid.core.units.brought import shown

MEMORY = 2**30
"""Bytes that the code may take beyond what the process has, with torch."""
TORCH_MEMORY = 2**30
"""Bytes that torch takes, where the process has not imported it before."""
CPU_S = 120
"""Processor time that the process may still use."""
FILE_BYTES = 16 * 2**20
DESCRIPTORS = 256
PROCESSES = 64
"""Threads that the user of the service may have beyond those that there are; the superuser has no such limit."""
SECRET = re.compile("TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|DATABASE_URL|API_?KEY|ACCESS_?KEY", re.IGNORECASE)
_LIMIT = re.compile(r"^limit: (\w+) (\S+)$", re.MULTILINE)
_FRAME = re.compile(r'File "(code-[0-9a-f]{16}/[^"]+)", line (\d+)')


def confine(folder: Path, trace: int) -> None:
    """Limit this process from here on; what it prints is dropped.

    Args:
        folder: an empty one, which becomes the current folder and that of temporary files.
        trace: a descriptor; that the process is confined is written there, and where it was if a limit ends it.
    """
    with contextlib.suppress(PermissionError):  # it leads a group already
        os.setsid()  # so that it can be killed with all that it has started
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    os.chdir(folder)
    tempfile.tempdir = str(folder)
    os.environ["TMPDIR"] = str(folder)
    for name in [name for name in os.environ if SECRET.search(name)]:
        del os.environ[name]
    os.write(trace, b"confined\n")
    faulthandler.enable(trace)
    _limit(resource.RLIMIT_DATA, _memory() + MEMORY + (0 if "torch" in sys.modules else TORCH_MEMORY))
    _limit(resource.RLIMIT_CPU, int(sum(os.times()[:2])) + CPU_S)
    _limit(resource.RLIMIT_FSIZE, FILE_BYTES)
    _limit(resource.RLIMIT_NOFILE, DESCRIPTORS)
    _limit(resource.RLIMIT_CORE, 0)
    if os.geteuid() != 0:
        _limit(resource.RLIMIT_NPROC, _threads() + PROCESSES)
    refuse_processes()


@contextlib.contextmanager
def time_limit(seconds: float, trace: int, doing: str) -> Iterator[None]:
    """End the process if the block takes longer; its line is written to ``trace``, whatever the code does meanwhile.

    In the block the code cannot end its process.

    Args:
        doing: what the block does with the code, as in "load".
    """
    os.write(trace, f"limit: {doing} {seconds:g}\n".encode())
    exit_here = os._exit

    def refuse(status: int) -> NoReturn:
        raise PermissionError(f"code may not end its process (os._exit({status}))")

    os._exit = refuse
    faulthandler.dump_traceback_later(seconds, exit=True, file=trace)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        os._exit = exit_here


def death(trace: str, status: int | None, file: str = "") -> str:
    """Why a confined process has ended without an answer, with file and line if these are known.

    Args:
        trace: what it wrote to its ``trace``.
        status: its exit status; None if it was killed because it did not answer.
        file: of the code, if its line is not known.
    """
    found = _FRAME.search(trace)
    place = f"{file}: " if file else ""
    if found is not None:
        place = f"{shown(found[1])}:{found[2]}: "
    limits = _LIMIT.findall(trace)
    doing, seconds = limits[-1] if limits else ("load", "")
    if status is None or "Timeout (" in trace:
        return f"{place}the code takes longer than {seconds} s to {doing}: make that shorter"
    if status == -signal.SIGXCPU:
        return f"{place}the code uses more than {CPU_S} s of processor time to {doing}"
    if status < 0:
        name = signal.Signals(-status).name
        return f"{place}the process that has to {doing} the code was ended by {name}: it may need too much memory"
    return f"{place}the code ended the process that has to {doing} it (exit status {status})"


def _limit(what: int, value: int) -> None:
    soft, hard = resource.getrlimit(what)
    limits = [limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(what, (min([value, *limits]), min([value, *([hard] if hard != resource.RLIM_INFINITY else [])])))


def _memory() -> int:
    """Bytes of data that this process has; on other systems than Linux, what naming has."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[5])
    except OSError:
        return 2**27
    return pages * resource.getpagesize()


def _threads() -> int:
    """Threads of this user's processes."""
    count = 0
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            if process.stat().st_uid == os.getuid():
                count += sum(1 for _ in (process / "task").iterdir())
    return count
