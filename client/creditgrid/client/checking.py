"""Units and experiments held to their contract, in a child process with limits: what ``creditgrid check`` does."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any

from creditgrid.client.errors import BadSetting
from creditgrid.client.local_service import require_server

PROGRAM = (sys.executable, "-P", "-m", "creditgrid.core.contract")
EACH_S = 60.0
"""Seconds that the import of code, and each check, may take."""
GRACE_S = 30.0
"""Seconds more, after which the process is ended: the import of torch, and code that cannot be interrupted."""
KEPT = 64 * 1024
"""The last bytes that the code prints are kept."""


@dataclass
class CheckedUnit:
    """One unit or experiment, where it is written, and the outcome of its checks (``core.contract.checks.Result``)."""

    unit: str
    group: str
    title: str
    file: str | None
    line: int | None
    checks: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Checking:
    """The state of a check; it is complete once `run` has ended.

    ``error`` says why the code cannot be checked, with file and line where they are known. ``printed`` is the end of
    what the code printed.
    """

    target: str
    units: list[CheckedUnit] = field(default_factory=list)
    error: str | None = None
    printed: str = ""

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong."""
        return self.error is None and not any(check["findings"] for unit in self.units for check in unit.checks)

    def run(
        self, *, quick: bool = False, each_s: float = EACH_S, grace_s: float = GRACE_S
    ) -> Iterator[CheckedUnit | dict[str, Any]]:
        """Check the target; yields each unit before its checks, then each of its results.

        Args:
            quick: only what a service checks before it takes code.
            each_s: seconds that the import, and each check, may take.
            grace_s: seconds more, after which the process is ended.

        Raises:
            PackageMissing: if only the client is installed.
            BadSetting: there is no file, folder, unit or experiment of this name.
        """
        require_server()
        path = Path(self.target)
        is_code = path.exists() or path.suffix == ".py" or os.sep in self.target
        arguments = [f"--seconds={each_s}", *["--quick"] * quick, *["--code"] * is_code]
        messages, writer = Pipe(duplex=False)
        # In a session of its own the child does not get Ctrl-C: this process does, and ends it.
        with (
            messages,
            writer,
            subprocess.Popen(
                [*PROGRAM, *arguments, str(writer.fileno()), str(path.absolute()) if is_code else self.target],
                pass_fds=[writer.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            ) as process,
        ):
            writer.close()
            assert process.stdout is not None
            output = _Output(process.stdout)
            try:
                yield from self._received(messages, process, each_s + grace_s)
            finally:
                with contextlib.suppress(ProcessLookupError):  # it and all that it started have ended
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                self.printed = output.text()

    def _received(
        self, messages: Connection, process: subprocess.Popen[bytes], silence_s: float
    ) -> Iterator[CheckedUnit | dict[str, Any]]:
        doing, unit = "its import", None
        while True:
            try:
                if not messages.poll(silence_s):
                    self._ended(unit, doing, f"took longer than {silence_s:g} s, and was ended")
                    return
                message = json.loads(messages.recv_bytes())
            except (EOFError, OSError):
                self._ended(unit, doing, _death(process.wait()))
                return
            match message.pop("type"):
                case "unit":
                    unit = CheckedUnit(**message)
                    self.units.append(unit)
                    yield unit
                case "started":
                    doing = message["check"]
                case "result":
                    assert unit is not None
                    unit.checks.append(message)
                    yield message
                case "failed":
                    self.error = message["error"]
                    return
                case "refused":
                    raise BadSetting(message["error"])
                case "done":
                    return

    def _ended(self, unit: CheckedUnit | None, doing: str, what: str) -> None:
        if unit is None:
            self.error = f"{self.target}: the import of the code {what}"
            return
        where = f"{unit.file}:{unit.line}: " if unit.file else ""
        self.error = f"{where}{unit.unit}: the check {doing!r} {what}"


class _Output:
    """What a process prints, read so that it never waits, and forgotten but for the end."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self._pipe, self._kept = pipe, b""
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while some := self._pipe.read1(KEPT):  # type: ignore[attr-defined]
            self._kept = (self._kept + some)[-KEPT:]

    def text(self) -> str:
        """The end of it, once the process has ended."""
        self._thread.join(5.0)
        return self._kept.decode(errors="replace")


def _death(status: int) -> str:
    if status >= 0:
        return f"ended the process with exit status {status}, or closed its descriptors"
    name = signal.Signals(-status).name
    return f"ended the process by {name}{', perhaps for want of memory' if name == 'SIGKILL' else ''}"


def summary(units: Sequence[CheckedUnit]) -> tuple[int, int, int]:
    """How many checks passed, failed, and were not done."""
    checks = [check for unit in units for check in unit.checks]
    failed = sum(bool(check["findings"]) for check in checks)
    skipped = sum(check["skipped"] is not None for check in checks)
    return len(checks) - failed - skipped, failed, skipped
