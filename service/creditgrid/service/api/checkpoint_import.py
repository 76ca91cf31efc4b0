"""Import of uploaded checkpoints, each from a nameless file by a process that is bounded in time and memory.

The service itself never unpickles an upload: ``creditgrid.workers.importing`` does, and prints the outcome as JSON.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import IO, Any

import anyio
from anyio import CapacityLimiter, to_thread

from creditgrid.core.errors import ArtifactError, BusyError, CheckpointError
from creditgrid.core.wire import CheckpointView
from creditgrid.service.api.disconnects import until_gone

TIMEOUT_S = 60.0
RATE = 32 * 2**20
"""Reading, checking and writing a checkpoint may take ``TIMEOUT_S`` seconds, and one more for each ``RATE`` bytes."""
SLOTS = 2
"""Checkpoints that are imported at a time."""
MOST_WAITING = 8
"""Uploads that arrive or wait for a slot; one more is refused."""
REFUSED = 2
"""Exit status of the process when it refuses the file."""
OUT_OF_MEMORY = (-signal.SIGKILL, -signal.SIGABRT, -signal.SIGSEGV, -signal.SIGBUS)
"""Exit statuses of a process that ran out of memory and could not report it."""


class CheckpointImporter:
    """Imports checkpoints, ``SLOTS`` at a time.

    Args:
        directory: folder of the uploads until they are imported; created if missing.
        root: folder of the artifacts.
    """

    def __init__(self, directory: Path, root: Path) -> None:
        self._directory, self._root = directory, root
        self._slots = CapacityLimiter(SLOTS)
        self._uploads = 0

    async def import_upload(
        self, chunks: AsyncIterator[bytes], gone: Callable[[], Awaitable[None]]
    ) -> tuple[CheckpointView, bool]:
        """The checkpoint in an uploaded file, and whether it is new.

        Args:
            chunks: the file.
            gone: awaited once the file is here; it returns when nobody waits for the answer, which ends the import.

        Raises:
            CheckpointError: the file is refused, or needs too much time or memory.
            ArtifactError: the upload or the checkpoint cannot be stored.
            BusyError: too many uploads wait.
            ClientDisconnect: nobody waits for the answer.
        """
        if self._uploads >= SLOTS + MOST_WAITING:
            raise BusyError("too many checkpoints are being imported: send it again in a minute")
        self._uploads += 1
        try:
            with await to_thread.run_sync(self._open) as file:
                size = 0
                async for chunk in chunks:
                    size += await to_thread.run_sync(file.write, chunk)
                await to_thread.run_sync(file.seek, 0)  # seek also flushes
                status, outcome = await self._in_slot(file, TIMEOUT_S + size / RATE, gone)
        except OSError as error:
            raise ArtifactError(f"the upload cannot be stored in {self._directory}: {error}") from error
        finally:
            self._uploads -= 1
        if status == 0:
            return CheckpointView.model_validate(outcome), bool(outcome["created"])
        if status == REFUSED:
            raise CheckpointError(outcome["error"])
        raise ArtifactError(outcome.get("error") or f"the process that imports checkpoints ended with status {status}")

    async def _in_slot(
        self, file: IO[bytes], seconds: float, gone: Callable[[], Awaitable[None]]
    ) -> tuple[int, dict[str, Any]]:
        """What ``_run`` returns or raises, in a slot."""

        async def run() -> tuple[int, dict[str, Any]]:
            async with self._slots:
                return await self._run(file, seconds)

        return await until_gone(run, gone)

    def _open(self) -> IO[bytes]:
        self._directory.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryFile(dir=self._directory)  # it has no name, so a crash leaves no file

    async def _run(self, file: IO[bytes], seconds: float) -> tuple[int, dict[str, Any]]:
        """The process's exit status and outcome; the process is killed when this is cancelled."""
        # The process must not see the token or the database's password.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("CREDITGRID_")}
        command = [sys.executable, "-P", "-m", "creditgrid.workers.importing", "-", str(self._root)]
        try:
            with anyio.fail_after(seconds):
                done = await anyio.run_process(command, stdin=file, stderr=None, check=False, env=environment)
        except TimeoutError:
            return REFUSED, {"error": f"reading the file took longer than {seconds:.3g} s and was stopped"}
        if done.returncode in OUT_OF_MEMORY:
            return REFUSED, {"error": "reading the file needed too much memory and was stopped"}
        if done.returncode == -signal.SIGXCPU:
            return REFUSED, {"error": "reading the file took too much time and was stopped"}
        return done.returncode, json.loads(done.stdout or b"{}")
