"""The files of a Delta table as a disk holds them: made durable after a commit, mended after the power went.

A commit is there for readers once its JSON is in ``_delta_log``, and is on the disk once that file, the Parquet files
it adds and the directories of both are synced. ``sync`` does that in the order of the versions, so whatever a caller
was told is durable stands on nothing that is not. At most two commits are not yet synced at any moment, one append and
one compaction; only those may be found torn, and only those are set aside.
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
"""Where torn files go, beside the log: out of a reader's sight, there for whoever wants to look."""
UNSYNCED = 2
"""Commits that may be in the log and not on the disk when the power goes: one append, one compaction."""
CHECKPOINTS_KEPT = 2
"""Checkpoints that stay, and the commits since the older one: a torn newer one can be done without."""

_COMMIT = re.compile(r"(\d{20})\.json")
_CHECKPOINT = re.compile(r"(\d{20})\.checkpoint\.parquet")


@dataclass(frozen=True, slots=True)
class Repair:
    """What was set aside: commits by version, and the names of the checkpoint files."""

    commits: tuple[int, ...] = ()
    checkpoints: tuple[str, ...] = ()


class TableLog:
    """The log below the table at ``path``; may be used from several threads."""

    def __init__(self, path: Path) -> None:
        self._path, self.folder = path, path / LOG
        self._syncing = threading.Lock()
        self._synced: int | None = None

    def commits(self) -> list[int]:
        """The versions whose JSON is there, upwards."""
        return self._versions(_COMMIT)

    def checkpoints(self) -> list[int]:
        """The versions of which there is a checkpoint, upwards."""
        return self._versions(_CHECKPOINT)

    def since_checkpoint(self) -> int:
        """Commits that a reader has to go through one by one."""
        last = max(self.checkpoints(), default=-1)
        return sum(version > last for version in self.commits())

    def strays(self) -> list[Path]:
        """Files in the log that are no part of it: what a writer had begun when it died."""
        known = (_COMMIT, _CHECKPOINT)
        return [
            path
            for path in self._listed()
            if path.name != LAST_CHECKPOINT and not any(pattern.fullmatch(path.name) for pattern in known)
        ]

    # -- durable ---------------------------------------------------------------------------------------------------

    def sync(self) -> None:
        """Put every commit there is on the disk, with what it adds; those that are there already cost nothing."""
        with self._syncing:
            commits = self.commits()
            if not commits:
                return
            if self._synced is None:  # what a process before this one synced is not known
                self._synced = commits[-1] - UNSYNCED - 1
            for version in commits:
                if version > self._synced:
                    self._sync_commit(version)
                    self._synced = version

    def _sync_commit(self, version: int) -> None:
        path = self._commit_path(version)
        files = [self._path / unquote(add["path"]) for add in _of(_actions(path.read_bytes()), "add")]
        live = [file for file in files if file.exists()]  # a compaction may be over and its inputs vacuumed by now
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
        """Remove the commits and checkpoints that newer, synced checkpoints stand for; returns how many files.

        It goes by number and not by age, so a clock that jumps has no part in it.
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
        """Set aside what a loss of power tore, so that the table opens as it was before.

        Raises:
            CreditGridError: for damage to something that was complete once, which cannot be undone here.
        """
        gone: list[str] = []
        torn = [version for version in self.checkpoints() if _unreadable(self._checkpoint_path(version))]
        good = [version for version in self.checkpoints() if version not in torn]
        commits = self.commits()
        base = max(good, default=-1)
        last = max([*commits, base])
        if torn and not set(range(base + 1, max(*torn, last) + 1)) <= set(commits):
            raise _beyond(
                self._checkpoint_path(torn[-1]), "is damaged, and the commits that it stands for are not there any more"
            )
        if self._misleads(good):
            gone.append(self._set_aside(self.folder / LAST_CHECKPOINT))
        gone.extend(self._set_aside(self._checkpoint_path(version)) for version in torn)
        broken = self._broken(base, last)
        for version in reversed(broken):  # from the end, so that a crash in between leaves no gap
            if self._commit_path(version).exists():
                self._set_aside(self._commit_path(version))
        return Repair(tuple(broken), tuple(gone))

    def _broken(self, base: int, last: int) -> list[int]:
        """The commits, all at the end, that have to go."""
        for version in range(base + 1, last + 1):
            why = self._damage(version, last)
            if why is None:
                continue
            tail = list(range(version, last + 1))
            appends = sum(bool(_of(self._readable(later), "txn")) for later in tail)
            if len(tail) > UNSYNCED or appends > 1:
                raise _beyond(self._commit_path(version), f"{why}, and later commits stand on it")
            return tail
        return []

    def _damage(self, version: int, last: int) -> str | None:
        """What is wrong with a commit; of those that may not have been synced the files are read that it adds."""
        try:
            actions = _actions(self._commit_path(version).read_bytes())
        except FileNotFoundError:
            return "is missing"
        except ValueError as error:
            return f"is not what was written ({error})"
        if not _complete(actions, version):
            return "ends before its end"
        if version <= last - UNSYNCED:
            return None
        later = range(version + 1, last + 1)
        replaced = {remove["path"] for after in later for remove in _of(self._readable(after), "remove")}
        for add in _of(actions, "add"):
            if add["path"] in replaced:  # and maybe vacuumed since
                continue
            path = self._path / unquote(add["path"])
            if not path.is_file():
                return f"adds {path.name}, which is not there"
            if path.stat().st_size != add["size"]:
                return f"adds {path.name}, which has {path.stat().st_size:,} bytes of {add['size']:,}"
            if why := _unreadable(path):
                return f"adds {path.name}, which cannot be read ({why})"
        return None

    def _readable(self, version: int) -> list[dict[str, Any]]:
        """The actions of a commit; none where they cannot be read."""
        try:
            return _actions(self._commit_path(version).read_bytes())
        except (FileNotFoundError, ValueError):
            return []

    def _misleads(self, good: Sequence[int]) -> bool:
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
    """The actions of a commit; raises ValueError for what is none."""
    found = [json.loads(line) for line in content.splitlines() if line.strip()]
    if not found or not all(isinstance(action, dict) for action in found):
        raise ValueError("it holds no actions")
    return found


def _of(actions: Iterable[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [action[kind] for action in actions if kind in action]


def _complete(actions: list[dict[str, Any]], version: int) -> bool:
    """Whether a commit has every line that its first one tells of: one cut between two lines still is JSON."""
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
    """What keeps a Parquet file from being read from beginning to end."""
    try:
        with pq.ParquetFile(path) as file:
            for _ in file.iter_batches():
                pass
    except (OSError, pa.ArrowException) as error:
        return str(error).splitlines()[0]
    return None


def _beyond(path: Path, why: str) -> CreditGridError:
    return CreditGridError(
        f"the results table is damaged and cannot be mended here: {path} {why}. Bring back the folder "
        f"{path.parent.parent} from a backup; or move it and the ledger away and submit the sweeps again: "
        "the artifacts are found, and the cells are measured anew"
    )
