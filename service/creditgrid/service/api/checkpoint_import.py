"""Uploaded checkpoints: each lies in a nameless file and is imported by a process bounded in time and memory.

The service never unpickles what a stranger sends; ``creditgrid.workers.importing`` does, and says how it went.
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
"""Seconds in which a checkpoint is read, checked and written."""
REFUSED = 2
"""Exit status of the process when the file is to blame."""
OUT_OF_MEMORY = (-signal.SIGKILL, -signal.SIGABRT, -signal.SIGSEGV, -signal.SIGBUS)
"""How a process ends that was refused memory where it could not say so."""


class Importer:
    """Imports checkpoints, one at a time.

    Args:
        directory: where uploads lie while they are read; it is made if it is not there.
        root: of the artifacts.
    """

    def __init__(self, directory: Path, root: Path) -> None:
        self._directory, self._root = directory, root
        self._turn = CapacityLimiter(1)

    async def load(self, chunks: AsyncIterator[bytes]) -> tuple[CheckpointView, bool]:
        """The checkpoint in an uploaded file; the flag says that it was not there before.

        Raises:
            CheckpointError: when the file is refused, or takes too much time or memory.
            ArtifactError: when it cannot be kept.
        """
        try:
            with await to_thread.run_sync(self._open) as file:
                async for chunk in chunks:
                    await to_thread.run_sync(file.write, chunk)
                await to_thread.run_sync(file.seek, 0)  # which writes what is left, too
                async with self._turn:
                    status, answer = await self._run(file)
        except OSError as error:
            raise ArtifactError(f"the upload cannot be kept in {self._directory}: {error}") from error
        if status == 0:
            return CheckpointView.model_validate(answer), bool(answer["created"])
        if status == REFUSED:
            raise CheckpointError(answer["error"])
        raise ArtifactError(answer.get("error") or f"the process that imports checkpoints ended with status {status}")

    def _open(self) -> IO[bytes]:
        self._directory.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryFile(dir=self._directory)  # it has no name, so nothing is left of it after a crash

    async def _run(self, file: IO[bytes]) -> tuple[int, dict[str, Any]]:
        """The exit status of the process and what it says; it is killed when the service stops."""
        # The token and the database's password are none of its business.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("CREDITGRID_")}
        command = [sys.executable, "-P", "-m", "creditgrid.workers.importing", "-", str(self._root)]
        try:
            with anyio.fail_after(TIMEOUT_S):
                done = await anyio.run_process(command, stdin=file, stderr=None, check=False, env=environment)
        except TimeoutError:
            return REFUSED, {"error": f"reading the file took longer than {TIMEOUT_S:g} s and was stopped"}
        if done.returncode in OUT_OF_MEMORY:
            return REFUSED, {"error": "reading the file takes too much memory and was stopped"}
        return done.returncode, json.loads(done.stdout or b"{}")
