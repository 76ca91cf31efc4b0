"""The files of a Delta table on the disk: synced after each commit, repaired after a power cut.

Readers see a commit once its JSON is in ``_delta_log``. It is durable once that file, the Parquet files it adds and the
directories of both are synced. ``sync`` does that in the order of the versions, so no durable commit depends on one
that is not. At any moment at most two commits are not synced yet, one append and one compaction. Only these may be
torn, and only these are set aside.
"""

from __future__ import annotations

import json
import re
import threading
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq

from creditgrid.core.errors import CreditGridError
from creditgrid.core.files import sync

LOG = "_delta_log"
LAST_CHECKPOINT = "_last_checkpoint"
ASIDE = "_set_aside"
"""The folder of torn files, which no reader looks into: a person may."""
UNSYNCED = 2
"""Commits that a power cut can tear: one append, one compaction."""
CHECKPOINTS_KEPT = 2
"""The newest checkpoints are kept, with the commits since the older one, in case the newer one is torn."""

_COMMIT = re.compile(r"(\d{20})\.json")
_CHECKPOINT = re.compile(r"(\d{20})\.checkpoint\.parquet")


@dataclass(frozen=True, slots=True)
class Repair:
    """What was set aside: versions of commits, and names of checkpoint files."""

    commits: tuple[int, ...] = ()
    checkpoints: tuple[str, ...] = ()


class TableLog:
    """The log of the table at ``path``, for any thread."""

    def __init__(self, path: Path, advice: str = "") -> None:
        self._path, self.folder = path, path / LOG
        self._advice = advice  # what to do without a backup
        self._syncing = threading.Lock()
        self._synced: int | None = None

    def commits(self) -> list[int]:
        """Versions that have a commit file, in order."""
        return self._versions(_COMMIT)

    def checkpoints(self) -> list[int]:
        """Versions that have a checkpoint, in order."""
        return self._versions(_CHECKPOINT)

    def since_checkpoint(self) -> int:
        """Commits that a reader applies one by one."""
        last = max(self.checkpoints(), default=-1)
        return sum(version > last for version in self.commits())

    def strays(self) -> list[Path]:
        """Files in the log's folder that a writer left unfinished when it died."""
        known = (_COMMIT, _CHECKPOINT)
        return [
            path
            for path in self._listed()
            if path.name != LAST_CHECKPOINT and not any(pattern.fullmatch(path.name) for pattern in known)
        ]

    # -- durable ---------------------------------------------------------------------------------------------------

    def sync(self) -> None:
        """Put every commit on the disk, with the files it adds; synced ones cost nothing."""
        with self._syncing:
            commits = self.commits()
            if not commits:
                return
            if self._synced is None:  # nobody knows what an earlier process synced
                self._synced = commits[-1] - UNSYNCED - 1
            for version in commits:
                if version > self._synced:
                    self._sync_commit(version)
                    self._synced = version

    def _sync_commit(self, version: int) -> None:
        path = self._commit_path(version)
        files = [self._path / unquote(add["path"]) for add in _of(_actions(path.read_bytes()), "add")]
        live = [file for file in files if file.exists()]  # a compaction may have replaced the others
        folders = sorted({file.parent for file in live} | {self._path}, reverse=True)  # inner ones first
        sync(*live, *folders, path, self.folder)
        if version == 0:
            sync(self._path.parent)

    def sync_checkpoints(self) -> None:
        """Put the checkpoints on the disk."""
        pointer = self.folder / LAST_CHECKPOINT
        checkpoints = [self._checkpoint_path(version) for version in self.checkpoints()]
        sync(*checkpoints, *([pointer] if pointer.exists() else []), self.folder)

    def trim(self) -> int:
        """Remove commits and checkpoints that newer, synced checkpoints contain; returns how many files.

        The number decides, not the age, so a clock that jumps does no harm.
        """
        checkpoints = self.checkpoints()
        if len(checkpoints) < CHECKPOINTS_KEPT:
            return 0
        oldest = checkpoints[-CHECKPOINTS_KEPT]
        old = [self._commit_path(version) for version in self.commits() if version < oldest]
        old += [self._checkpoint_path(version) for version in checkpoints if version < oldest]
        for path in old:
            path.unlink()
        return len(old)

    # -- torn ------------------------------------------------------------------------------------------------------

    def repair(self) -> Repair:
        """Set aside what a power cut tore, so that the table opens as it was before.

        Raises:
            CreditGridError: a file that was complete is damaged, which cannot be repaired here.
        """
        aside: list[str] = []
        torn = [version for version in self.checkpoints() if _unreadable(self._checkpoint_path(version))]
        good = [version for version in self.checkpoints() if version not in torn]
        commits = self.commits()
        base = max(good, default=-1)
        last = max([*commits, base])
        if torn and not set(range(base + 1, max(*torn, last) + 1)) <= set(commits):
            checkpoint = self._checkpoint_path(torn[-1])
            raise self.damaged(f"{checkpoint} is damaged, and the commits that it contains were removed")
        if self._pointer_misleads(good):
            aside.append(self._set_aside(self.folder / LAST_CHECKPOINT))
        aside.extend(self._set_aside(self._checkpoint_path(version)) for version in torn)
        broken = self._broken(base, last)
        for version in reversed(broken):  # from the end, so that a crash leaves no gap
            if self._commit_path(version).exists():
                self._set_aside(self._commit_path(version))
        return Repair(tuple(broken), tuple(aside))

    def damaged(self, why: str) -> CreditGridError:
        """The error for a table that cannot be repaired."""
        return CreditGridError(
            f"the {self._path.name} table is damaged and cannot be repaired here: {why}. Restore the folder "
            f"{self._path} from a backup; or {self._advice}"
        )

    def _broken(self, base: int, last: int) -> list[int]:
        """The torn commits, all at the end of the log."""
        for version in range(base + 1, last + 1):
            why = self._damage(version, last)
            if why is None:
                continue
            tail = list(range(version, last + 1))
            appends = sum(bool(_of(self._readable(later), "txn")) for later in tail)
            if len(tail) > UNSYNCED or appends > 1:
                raise self.damaged(f"{self._commit_path(version)} {why}, and later commits depend on it")
            return tail
        return []

    def _damage(self, version: int, last: int) -> str | None:
        """What is wrong with a commit. If it may be unsynced, the files that it adds are read too."""
        try:
            actions = _actions(self._commit_path(version).read_bytes())
        except FileNotFoundError:
            return "is missing"
        except ValueError as error:
            return f"is not a commit ({error})"
        if not _complete(actions, version):
            return "is incomplete"
        if version <= last - UNSYNCED:
            return None
        later = range(version + 1, last + 1)
        replaced = {remove["path"] for after in later for remove in _of(self._readable(after), "remove")}
        for add in _of(actions, "add"):
            if add["path"] in replaced:  # and perhaps removed since
                continue
            path = self._path / unquote(add["path"])
            if not path.is_file():
                return f"adds {path.name}, which is missing"
            if path.stat().st_size != add["size"]:
                return f"adds {path.name}, which has {path.stat().st_size:,} bytes instead of {add['size']:,}"
            if why := _unreadable(path):
                return f"adds {path.name}, which cannot be read ({why})"
        return None

    def _readable(self, version: int) -> list[dict[str, Any]]:
        """The actions of a commit; none if it cannot be read."""
        try:
            return _actions(self._commit_path(version).read_bytes())
        except (FileNotFoundError, ValueError):
            return []

    def _pointer_misleads(self, good: Sequence[int]) -> bool:
        """Whether the pointer to the last checkpoint is torn, or points to one that cannot be used."""
        try:
            found = json.loads((self.folder / LAST_CHECKPOINT).read_bytes())
        except FileNotFoundError:
            return False
        except ValueError:
            return True
        return not isinstance(found, dict) or found.get("version") not in good

    def _set_aside(self, path: Path) -> str:
        aside = self._path / ASIDE
        aside.mkdir(exist_ok=True)
        path.rename(aside / f"{path.name}.{uuid.uuid4().hex[:8]}")
        sync(aside, path.parent, self._path)
        return path.name

    # -- names -----------------------------------------------------------------------------------------------------

    def _commit_path(self, version: int) -> Path:
        return self.folder / f"{version:020}.json"

    def _checkpoint_path(self, version: int) -> Path:
        return self.folder / f"{version:020}.checkpoint.parquet"

    def _versions(self, pattern: re.Pattern[str]) -> list[int]:
        found = (pattern.fullmatch(path.name) for path in self._listed())
        return sorted(int(match[1]) for match in found if match)

    def _listed(self) -> list[Path]:
        try:
            return list(self.folder.iterdir())
        except FileNotFoundError:
            return []


def _actions(content: bytes) -> list[dict[str, Any]]:
    """The actions of a commit; raises ValueError if it has none."""
    found = [json.loads(line) for line in content.splitlines() if line.strip()]
    if not found or not all(isinstance(action, dict) for action in found):
        raise ValueError("it holds no actions")
    return found


def _of(actions: Iterable[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [action[kind] for action in actions if kind in action]


def _complete(actions: list[dict[str, Any]], version: int) -> bool:
    """Whether a commit has as many lines as its first one says: a file cut between two lines is still JSON."""
    (info, *_) = [*_of(actions, "commitInfo"), {}]
    metrics = info.get("operationMetrics", {})
    counted = {"add": "num_added_files"} if info.get("operation") == "WRITE" else {}
    if info.get("operation") == "OPTIMIZE":
        counted = {"add": "numFilesAdded", "remove": "numFilesRemoved"}
    if any(len(_of(actions, kind)) != metrics.get(name) for kind, name in counted.items()):
        return False
    if version == 0 and not (_of(actions, "protocol") and _of(actions, "metaData")):
        return False
    return info.get("operation") != "WRITE" or bool(_of(actions, "txn"))


def _unreadable(path: Path) -> str | None:
    """Why a Parquet file cannot be read to its end; None if it can."""
    try:
        with pq.ParquetFile(path) as file:
            for _ in file.iter_batches():
                pass
    except (OSError, pa.ArrowException) as error:
        return str(error).splitlines()[0]
    return None
