"""The Ray cluster that a driver starts on this machine: its folder, and processes that outlived their driver.

Ray keeps sockets, logs and spilled objects of a cluster below one folder, with a session for each start. The folder's
name is made from the path of the artifact store. So the next service on that store finds what an earlier cluster left
there, also after everything was killed. Two services never run on one store at a time.

Only the user may enter the folder, all ports of the cluster listen on loopback, and who connects needs a token that is
in the folder. Ray's own is one for all clusters of a user, in a file that others may read.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import stat
import tempfile
import time
from pathlib import Path

import psutil

KILL_TIMEOUT_S = 5.0
MAX_PATH = 39
"""Characters of the folder's path: Ray makes sockets far below it, whose paths may have 103 (macOS) or 107."""
RAY_FOLDER = "r"
LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""0 makes Ray use 127.0.0.1 for every port of a node, on Linux too. Other machines can then not join the cluster."""
MARK = "CREDITGRID_RAY_FOLDER"
"""Set in the environment of the driver and of all that it starts. A process id may be reused, this mark is not."""


class LocalCluster:
    """The cluster on this machine for one artifact store."""

    def __init__(self, store: Path) -> None:
        name = hashlib.sha256(f"{os.getuid()} {store.resolve()}".encode()).hexdigest()[:10]
        private = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()) / f"creditgrid-ray-{name}"
        # ``clear`` makes sure that the private folder is the user's own. Ray gives everybody access to its folder,
        # so that is one level below.
        fits = len(str(private / RAY_FOLDER)) <= MAX_PATH
        self.private = private if fits else Path("/tmp") / private.name  # noqa: S108
        self.folder = self.private / RAY_FOLDER
        self._token = self.private / "token"

    def environment(self) -> dict[str, str]:
        """The driver's environment: what closes the cluster to others, and the mark of its processes."""
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self._token)}
        return {MARK: str(self.folder), LOOPBACK: "0", **token}

    def clear(self, keep: int = 1) -> None:
        """Kill what is left of a dead cluster, and remove all its sessions but the last ``keep``, for their logs.

        Raises:
            OSError: when the folder cannot be made or emptied, or is another user's.
        """
        self.private.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = self.private.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            raise PermissionError(f"{self.private} is not a folder of this user: remove it, or set RAY_TMPDIR")
        self.private.chmod(0o700)
        self.kill()
        self._token.unlink(missing_ok=True)
        with open(os.open(self._token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:  # noqa: PTH123
            file.write(secrets.token_hex(32))
        sessions = sorted(self.folder.glob("session_2*"))
        for session in sessions[: len(sessions) - keep]:
            shutil.rmtree(session)

    def remove(self) -> None:
        """Kill what is left of a stopped cluster, and remove all its files."""
        self.kill()
        shutil.rmtree(self.private, ignore_errors=True)  # the next start removes what cannot be removed now

    def kill(self) -> None:
        """Kill what is left of the last cluster, and wait until it is gone."""
        deadline = time.monotonic() + KILL_TIMEOUT_S
        while (left := self._left()) and time.monotonic() < deadline:
            for process in left:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            time.sleep(0.1)

    def _left(self) -> list[psutil.Process]:
        """The marked processes, and those in the session of one: the titles of Ray's agents overwrite their mark."""
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
