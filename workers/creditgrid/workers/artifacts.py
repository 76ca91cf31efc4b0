"""The artifact store: the results of tasks, durable, addressed by key.

An artifact is a directory ``<root>/<first two digits>/<key>/`` with ``tensors.safetensors`` and ``record.json`` (the
hashed payload, the checksum of the tensors, provenance). It is written under a temporary name in the same parent
directory, synced, and renamed once, so that a reader sees all or nothing. Two writers of one key write interchangeable
results: the first rename wins and the other copy is deleted.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from creditgrid.core.errors import ArtifactCorrupt, ArtifactError, ArtifactMissing
from creditgrid.core.files import sync, synced_file
from creditgrid.core.task import Arrays
from creditgrid.workers.temporary_names import GRACE_S, is_abandoned, temporary_name

log = logging.getLogger(__name__)

TENSORS = "tensors.safetensors"
RECORD = "record.json"
TEMPORARY = ".writing-"
"""Prefix of directories that are being written, or whose writer died."""
REMOVED = ".removed-"
"""Prefix of removed artifacts, which are being deleted."""
CORRUPT = "corrupt"
USE_RECORDED_EVERY_S = 3600.0


@dataclass(frozen=True, slots=True)
class Stored:
    """An artifact as retention sees it: bytes on the disk, and when it was last loaded or made (Unix seconds)."""

    key: str
    bytes: int
    used_at: float


class ArtifactStore:
    """Artifacts below one directory; every worker must see it under the same path."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, key: str) -> Path:
        """The directory of the artifact, whether or not it exists.

        Raises:
            ArtifactMissing: if ``key`` is no key, so that no other path is made from it.
        """
        if len(key) != 64 or set(key) - set("0123456789abcdef"):
            raise ArtifactMissing(f"{key[:80]!r} is not an artifact key: a key has 64 lower-case hexadecimal digits")
        return self.root / key[:2] / key

    def has(self, key: str) -> bool:
        """Whether the artifact is there; it is then complete.

        Raises:
            ArtifactError: when the store cannot be read.
        """
        try:
            return (self.path(key) / RECORD).is_file()
        except OSError as error:
            raise ArtifactError(f"the store cannot be searched for the artifact {key[:12]}: {error}") from error

    def size(self, key: str) -> int:
        """Bytes of the artifact's tensors; raises as ``record`` does."""
        return int(self.record(key)["bytes"])

    def save(self, key: str, payload: Mapping[str, Any], arrays: Arrays, provenance: Mapping[str, Any]) -> int:
        """Write an artifact durably, unless it is there already; returns its size in bytes.

        Raises:
            ArtifactError: naming the path, when it cannot be written (disk full, no permission).
            ValueError, TypeError: when payload or provenance cannot be written as JSON; nothing is written then.
        """
        place = self.path(key)
        data = save({name: _contiguous(array) for name, array in arrays.items()})
        if self.has(key):
            return len(data)
        text = json.dumps(
            {
                "key": key,
                "payload": dict(payload),
                "sha256": hashlib.sha256(data).hexdigest(),
                "bytes": len(data),
                "tensors": {name: {"shape": list(a.shape), "dtype": str(a.dtype)} for name, a in arrays.items()},
                "provenance": dict(provenance),
            },
            indent=1,
            sort_keys=True,
            allow_nan=False,
        )
        draft = place.with_name(temporary_name(TEMPORARY, key))
        try:
            self._make_parent(place.parent)
            draft.mkdir()
            for name, content in ((TENSORS, data), (RECORD, text.encode())):
                with synced_file(draft / name) as file:
                    file.write(content)
            sync(draft)
            try:
                draft.rename(place)
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                    raise
                if not self.has(key):  # another artifact of this key was there, and a part of it was removed
                    self._set_aside(key, "its record is gone", _inode(place))
                    draft.rename(place)
            sync(place.parent)
        except OSError as error:
            raise ArtifactError(
                f"the artifact {key[:12]} cannot be written below {self.root}: {error}{_advice(error)}"
            ) from error
        finally:  # also when the call is cancelled here
            shutil.rmtree(draft, ignore_errors=True)
        return len(data)

    def _make_parent(self, directory: Path) -> None:
        if directory.is_dir():
            return
        directory.mkdir(parents=True, exist_ok=True)
        sync(self.root, self.root.parent)

    def record(self, key: str) -> dict[str, Any]:
        """The record of an artifact.

        Raises:
            ArtifactMissing: when there is no such artifact.
            ArtifactCorrupt: when the file is not the record of that artifact.
            ArtifactError: when it cannot be read; all methods below raise this too.
        """
        path = self.path(key) / RECORD
        try:
            found = json.loads(path.read_bytes())
        except FileNotFoundError:
            raise ArtifactMissing(f"there is no artifact {key[:12]}… in the store") from None
        except OSError as error:
            raise ArtifactError(f"the artifact {key[:12]} cannot be read: {error}") from error
        except ValueError as error:  # neither JSON nor text
            raise ArtifactCorrupt(f"{path} is not what was written: {error}") from error
        if not isinstance(found, dict) or found.get("key") != key or not isinstance(found.get("sha256"), str):
            raise ArtifactCorrupt(f"{path} is not the record of {key[:12]}…")
        return found

    def read(self, key: str) -> bytes:
        """The safetensors bytes, checked against the recorded checksum.

        Raises:
            ArtifactMissing: when there is no such artifact.
            ArtifactCorrupt: when the bytes differ from those that were written.
        """
        with self.open(key) as file:
            return file.read()

    def open(self, key: str) -> BinaryIO:
        """The file of tensors, checked and at its start; it can be read to the end even if the artifact is removed.

        Raises as ``read`` does. The caller closes it.
        """
        record = self.record(key)
        path = self.path(key) / TENSORS
        with contextlib.ExitStack() as stack:  # closes the file if it is not returned
            try:
                file = stack.enter_context(path.open("rb"))
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                file.seek(0)
            except FileNotFoundError:
                if not self.has(key):  # the artifact was removed in between
                    raise ArtifactMissing(f"there is no artifact {key[:12]}… in the store") from None
                raise ArtifactCorrupt(f"{path} is gone, but its record is there") from None
            except OSError as error:
                raise ArtifactError(f"the artifact {key[:12]} cannot be read: {error}") from error
            if digest != record["sha256"]:
                raise ArtifactCorrupt(f"{path} is not what was written: its SHA-256 differs from the record's")
            stack.pop_all()
            return file

    def load(self, key: str) -> Arrays:
        """The tensors as NumPy arrays; raises as ``read`` does.

        A corrupt artifact is moved to the folder ``corrupt``, so that it is computed again when it is next needed.
        """
        seen = _inode(self.path(key))
        try:
            data = self.read(key)
            try:
                arrays: Arrays = load(data)
            except SafetensorError as error:
                raise ArtifactCorrupt(f"{self.path(key) / TENSORS} is not a safetensors file: {error}") from error
        except ArtifactCorrupt as error:
            try:
                aside = self._set_aside(key, str(error), seen)
            except OSError as why:
                raise ArtifactCorrupt(f"{error}; it cannot be moved out of the way: {why}{_advice(why)}") from error
            where = f"it was moved to {aside}" if aside.exists() else "another reader has moved it away"
            raise ArtifactCorrupt(f"{error}; {where}, and it is computed again when it is needed") from error
        self._record_use(key)
        return arrays

    def _record_use(self, key: str) -> None:
        path = self.path(key) / RECORD
        with contextlib.suppress(OSError):  # it was removed, or this worker may only read the store
            if abs(time.time() - path.stat().st_mtime) > USE_RECORDED_EVERY_S:
                os.utime(path)

    def _set_aside(self, key: str, why: str, seen: int | None) -> Path:
        """Move the artifact with the inode ``seen`` away, but not one that another writer has put there since."""
        aside = self.root / CORRUPT / f"{key}-{uuid.uuid4().hex[:8]}"
        aside.parent.mkdir(parents=True, exist_ok=True)
        place = self.path(key)
        with contextlib.suppress(FileNotFoundError):  # another reader was faster
            if _inode(place) == seen:
                place.rename(aside)
                os.utime(aside)  # its age counts from here
                log.warning("a corrupt artifact was set aside: %s, as %s: %s", key, aside, why)
        return aside

    # -- listing and removing --------------------------------------------------------------------------------------

    def keys(self) -> Iterator[str]:
        """Every key in the store."""
        for place in self._places():
            if not place.name.startswith("."):
                yield place.name

    def stored(self) -> Iterator[Stored]:
        """Every complete artifact with its size and last use."""
        for key in self.keys():
            place = self.path(key)
            with contextlib.suppress(FileNotFoundError):  # an incomplete one, or it was removed in between
                record, tensors = (place / RECORD).stat(), (place / TENSORS).stat()
                yield Stored(key, record.st_size + tensors.st_size, record.st_mtime)

    def corrupt(self) -> list[Path]:
        """The corrupt artifacts that were set aside."""
        folder = self.root / CORRUPT
        return sorted(folder.iterdir()) if folder.is_dir() else []

    def leftovers(self, grace_s: float = GRACE_S) -> list[Path]:
        """Directories left by dead writers and by interrupted removals, and incomplete artifacts."""
        return [
            place
            for place in self._places()
            if place.name.startswith(REMOVED)
            or ((place.name.startswith(TEMPORARY) or not (place / RECORD).exists()) and is_abandoned(place, grace_s))
        ]

    def remove(self, key: str) -> Path:
        """Remove an artifact by one rename; the caller deletes the directory that is returned.

        Raises:
            ArtifactMissing: when there is no such artifact.
            ArtifactError: when it cannot be renamed.
        """
        place = self.path(key)
        away = place.with_name(temporary_name(REMOVED, key))
        try:
            place.rename(away)
        except FileNotFoundError:
            raise ArtifactMissing(f"there is no artifact {key[:12]}… in the store") from None
        except OSError as error:
            raise ArtifactError(f"the artifact {place} cannot be removed: {error}{_advice(error)}") from error
        return away

    def _places(self) -> Iterator[Path]:
        for parent in sorted(self.root.glob("[0-9a-f][0-9a-f]")):
            yield from sorted(parent.iterdir())


def _advice(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "; free some space, or let `creditgrid gc` remove artifacts that no sweep needs"
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return "; whoever runs the workers must be able to write there"
    return ""


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except OSError:  # reading the artifact reports why
        return None


def _contiguous(array: Any) -> Any:
    return np.ascontiguousarray(array) if array.ndim else array
