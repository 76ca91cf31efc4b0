"""What a Ray cluster of our own leaves behind: its folder, and processes that outlived their driver.

Ray keeps sockets, logs and spilled objects of a cluster below one folder, a session for each start. The folder's name
follows from the artifact store, so that whoever starts a cluster for that store finds what an earlier one left there,
also after everything was killed. Two services never run on one store at a time.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
import time
from pathlib import Path

import psutil

END_S = 5.0
LONGEST = 39
"""Characters of the folder's path: Ray makes sockets far below it, whose paths have at most 103 (macOS) or 107."""
MARK = "CREDITGRID_RAY_FOLDER"
"""In the environment of the driver and of all that it starts. A process's number may be given anew, this may not."""


class LocalCluster:
    """The Ray cluster that is started on this machine for one artifact store."""

    def __init__(self, store: Path) -> None:
        name = hashlib.sha256(f"{os.getuid()} {store.resolve()}".encode()).hexdigest()[:10]
        folder = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()) / f"creditgrid-ray-{name}"
        # A folder of the user's own there, which ``clear`` makes sure of.
        self.folder = folder if len(str(folder)) <= LONGEST else Path("/tmp") / folder.name  # noqa: S108

    def environment(self) -> dict[str, str]:
        """What the driver is started with, so that its cluster's processes are known as such."""
        return {MARK: str(self.folder)}

    def clear(self, keep: int = 1) -> None:
        """End what is left of a dead cluster, and remove its sessions but the last ``keep``, whose logs may tell why.

        Raises:
            OSError: when the folder cannot be made or emptied, or is another user's.
        """
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self.folder.stat().st_uid != os.getuid():
            raise PermissionError(f"{self.folder} belongs to another user")
        self.end()
        sessions = sorted(self.folder.glob("session_2*"))
        for session in sessions[: len(sessions) - keep]:
            shutil.rmtree(session)

    def remove(self) -> None:
        """End what is left of a cluster that was stopped, and remove everything of it."""
        self.end()
        shutil.rmtree(self.folder, ignore_errors=True)  # what cannot be removed now is at the next start

    def end(self) -> None:
        """Kill what is left of the cluster that was started last, and wait until it is gone."""
        deadline = time.monotonic() + END_S
        while (left := self._left()) and time.monotonic() < deadline:
            for process in left:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            time.sleep(0.1)

    def _left(self) -> list[psutil.Process]:
        """The marked processes, and who shares a session with one: the titles of Ray's agents hide what marks them."""
        own = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.uids().real == os.getuid() and process.status() != psutil.STATUS_ZOMBIE:
                    own.append((process, os.getsid(process.pid)))
        sessions = set()
        for process, session in own:
            with contextlib.suppress(psutil.Error, OSError):
                if process.environ().get(MARK) == str(self.folder):
                    sessions.add(session)
        return [process for process, session in own if session in sessions]
