"""Limits of a process that runs code which nobody has checked yet: memory, time, and no processes of its own."""

from __future__ import annotations

import resource
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

MEMORY = 2 * 2**30
"""Bytes of data that code may take while it is checked, torch included."""
_STARTS = frozenset(
    ("os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.system", "os.exec", "subprocess.Popen", "pty.spawn")
)
_SIGNALS = frozenset(("os.kill", "os.killpg", "signal.pthread_kill"))
"""Audit events of what starts a process or becomes another program, and of what signals one."""
_C_FUNCTIONS = frozenset(
    (
        *("fork", "vfork", "_Fork", "clone", "clone3", "posix_spawn", "posix_spawnp", "system", "popen", "syscall"),
        *("execl", "execlp", "execle", "execv", "execvp", "execve", "execvpe", "fexecve", "kill", "killpg", "tgkill"),
    )
)
"""The same in the C library, which ctypes can call."""


class Overtime(BaseException):
    """Code took longer than it may. It is no Exception, so that the code does not swallow it."""


def confine(memory: int = MEMORY) -> None:
    """Limit this process for the rest of its life; import what it needs before, such as torch."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    most = memory if hard == resource.RLIM_INFINITY else min(memory, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    refuse_processes()


def refuse_processes() -> None:
    """Raise PermissionError where code starts or signals a process, for the rest of this process's life."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in _STARTS:
            raise PermissionError(f"code may not start processes ({event})")
        if event in _SIGNALS:
            raise PermissionError(f"code may not signal processes ({event})")
        if event == "ctypes.dlsym" and arguments[1] in _C_FUNCTIONS:
            raise PermissionError(f"code may not start or signal processes ({arguments[1]})")

    sys.addaudithook(hook)
    import _posixsubprocess  # it has no audit event, and multiprocessing uses it

    def refuse(*_: object) -> None:
        raise PermissionError("code may not start processes (fork_exec)")

    setattr(_posixsubprocess, "fork_exec", refuse)  # noqa: B010 (its type is that of another function)


@contextmanager
def at_most(seconds: float) -> Iterator[Callable[[], None]]:
    """Raises `Overtime` in the block after some seconds, counted again after each call of what it yields.

    For the main thread. A call into C is not interrupted.
    """

    def restart() -> None:
        signal.setitimer(signal.ITIMER_REAL, seconds)

    def stop(_: int, __: FrameType | None) -> None:
        restart()  # for code that continues after it
        raise Overtime(f"took longer than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    restart()
    try:
        yield restart
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
