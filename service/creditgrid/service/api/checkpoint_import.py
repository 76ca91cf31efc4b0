"""Import of uploaded checkpoints, each from a nameless file by a process that is bounded in time and memory.

The service itself never unpickles an upload: ``creditgrid.workers.importing`` does, and prints the outcome as JSON.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import IO, Any

import anyio
from anyio import CapacityLimiter, to_thread

from creditgrid.core.errors import ArtifactError, CheckpointError
from creditgrid.core.wire import CheckpointView

TIMEOUT_S = 60.0
"""Time limit for reading, checking and writing a checkpoint."""
REFUSED = 2
"""Exit status of the process when it refuses the file."""
OUT_OF_MEMORY = (-signal.SIGKILL, -signal.SIGABRT, -signal.SIGSEGV, -signal.SIGBUS)
"""Exit statuses of a process that ran out of memory and could not report it."""


class CheckpointImporter:
    """Imports checkpoints, one at a time.

    Args:
        directory: folder of the uploads until they are imported; created if missing.
        root: folder of the artifacts.
    """

    def __init__(self, directory: Path, root: Path) -> None:
        self._directory, self._root = directory, root
        self._one_at_a_time = CapacityLimiter(1)

    async def import_upload(self, chunks: AsyncIterator[bytes]) -> tuple[CheckpointView, bool]:
        """The checkpoint in an uploaded file, and whether it is new.

        Raises:
            CheckpointError: the file is refused, or needs too much time or memory.
            ArtifactError: the upload or the checkpoint cannot be stored.
        """
        try:
            with await to_thread.run_sync(self._open) as file:
                async for chunk in chunks:
                    await to_thread.run_sync(file.write, chunk)
                await to_thread.run_sync(file.seek, 0)  # seek also flushes
                async with self._one_at_a_time:
                    status, outcome = await self._run(file)
        except OSError as error:
            raise ArtifactError(f"the upload cannot be stored in {self._directory}: {error}") from error
        if status == 0:
            return CheckpointView.model_validate(outcome), bool(outcome["created"])
        if status == REFUSED:
            raise CheckpointError(outcome["error"])
        raise ArtifactError(outcome.get("error") or f"the process that imports checkpoints ended with status {status}")

    def _open(self) -> IO[bytes]:
        self._directory.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryFile(dir=self._directory)  # it has no name, so a crash leaves no file

    async def _run(self, file: IO[bytes]) -> tuple[int, dict[str, Any]]:
        """The process's exit status and outcome; the process is killed when the service stops."""
        # The process must not see the token or the database's password.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("CREDITGRID_")}
        command = [sys.executable, "-P", "-m", "creditgrid.workers.importing", "-", str(self._root)]
        try:
            with anyio.fail_after(TIMEOUT_S):
                done = await anyio.run_process(command, stdin=file, stderr=None, check=False, env=environment)
        except TimeoutError:
            return REFUSED, {"error": f"reading the file took longer than {TIMEOUT_S:g} s and was stopped"}
        if done.returncode in OUT_OF_MEMORY:
            return REFUSED, {"error": "reading the file needed too much memory and was stopped"}
        return done.returncode, json.loads(done.stdout or b"{}")
