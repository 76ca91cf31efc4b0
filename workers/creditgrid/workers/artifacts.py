"""The artifact store: what tasks made, durable, addressed by key.

An artifact is a directory ``<root>/<first two digits>/<key>/`` with ``tensors.safetensors`` and ``record.json`` (the
hashed payload, the payload's checksum, provenance). It is written under a temporary name beside its place, synced, and
renamed once, so that a reader sees all of it or none. Two writers of one key write interchangeable results: the first
rename wins and the other copy is dropped.
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
"""Prefix of directories that are being written, or were when their writer died."""
REMOVED = ".removed-"
"""Prefix of directories that are no artifacts any more and are being deleted."""
CORRUPT = "corrupt"
USE_NOTED_EVERY_S = 3600.0


@dataclass(frozen=True, slots=True)
class Stored:
    """An artifact as retention sees it: bytes on the disk, and when it was last loaded or made (Unix seconds)."""

    key: str
    bytes: int
    used_at: float


class ArtifactStore:
    """Artifacts below one directory, which every worker must see under the same path."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, key: str) -> Path:
        """Where the artifact lies, or would.

        Raises:
            ArtifactMissing: for what is no key (64 lower-case hexadecimal digits), before a path is made of it.
        """
        if len(key) != 64 or set(key) - set("0123456789abcdef"):
            raise ArtifactMissing(f"{key[:80]!r} is no artifact key: 64 lower-case hexadecimal digits are")
        return self.root / key[:2] / key

    def has(self, key: str) -> bool:
        """Whether the artifact is there whole (its directory appears at once).

        Raises:
            ArtifactError: when the store cannot be looked into.
        """
        try:
            return (self.path(key) / RECORD).is_file()
        except OSError as error:
            raise ArtifactError(f"the artifact {key[:12]} cannot be looked for: {error}") from error

    def size(self, key: str) -> int:
        """Bytes of the tensors of an artifact that is there; raises as ``record`` does."""
        return int(self.record(key)["bytes"])

    def save(self, key: str, payload: Mapping[str, Any], arrays: Arrays, provenance: Mapping[str, Any]) -> int:
        """Write an artifact durably and return its size in bytes; if it is there already, do nothing.

        Raises:
            ArtifactError: naming the path, when it cannot be written (disk full, no permission).
            ValueError, TypeError: when payload or provenance is no JSON; nothing is written.
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
            self._make_shelf(place.parent)
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
                if not self.has(key):  # someone took away a part of what stood there: the rest makes room
                    self._set_aside(key, "its record is gone", _inode(place))
                    draft.rename(place)
            sync(place.parent)
        except OSError as error:
            raise ArtifactError(
                f"the artifact {key[:12]} cannot be written below {self.root}: {error}{_advice(error)}"
            ) from error
        finally:  # also where the call was cancelled in the middle
            shutil.rmtree(draft, ignore_errors=True)
        return len(data)

    def _make_shelf(self, shelf: Path) -> None:
        if shelf.is_dir():
            return
        shelf.mkdir(parents=True, exist_ok=True)
        sync(self.root, self.root.parent)

    def record(self, key: str) -> dict[str, Any]:
        """The record beside the tensors.

        Raises:
            ArtifactMissing: when there is no such artifact.
            ArtifactCorrupt: when it is no record of that artifact.
            ArtifactError: when it cannot be read, as all below.
        """
        path = self.path(key) / RECORD
        try:
            found = json.loads(path.read_bytes())
        except FileNotFoundError:
            raise ArtifactMissing(f"there is no artifact {key[:12]}… in the store") from None
        except OSError as error:
            raise ArtifactError(f"the artifact {key[:12]} cannot be read: {error}") from error
        except ValueError as error:  # no JSON, or no text
            raise ArtifactCorrupt(f"{path} is not what was written: {error}") from error
        if not isinstance(found, dict) or found.get("key") != key or not isinstance(found.get("sha256"), str):
            raise ArtifactCorrupt(f"{path} is not the record of {key[:12]}…")
        return found

    def read(self, key: str) -> bytes:
        """The safetensors bytes, checked against the recorded checksum.

        Raises:
            ArtifactMissing: when there is no such artifact.
            ArtifactCorrupt: when the bytes are not those that were written.
        """
        with self.open(key) as file:
            return file.read()

    def open(self, key: str) -> BinaryIO:
        """The tensors' file, all of it checked, at its beginning: what is removed meanwhile can be read to the end.

        Raises as ``read`` does. The caller closes it.
        """
        record = self.record(key)
        path = self.path(key) / TENSORS
        try:
            file = path.open("rb")
        except FileNotFoundError:
            if not self.has(key):  # it was removed in between, whole
                raise ArtifactMissing(f"there is no artifact {key[:12]}… in the store") from None
            raise ArtifactCorrupt(f"{path} is gone while its record stands") from None
        except OSError as error:
            raise ArtifactError(f"the artifact {key[:12]} cannot be read: {error}") from error
        try:
            if hashlib.file_digest(file, "sha256").hexdigest() != record["sha256"]:
                raise ArtifactCorrupt(f"{path} is not what was written: its SHA-256 differs from the record's")
            file.seek(0)
        except OSError as error:
            file.close()
            raise ArtifactError(f"the artifact {key[:12]} cannot be read: {error}") from error
        except BaseException:
            file.close()
            raise
        return file

    def load(self, key: str) -> Arrays:
        """The tensors as NumPy arrays; raises as ``read`` does.

        A corrupt artifact is moved out of its place, below ``corrupt``, so that whoever asks again computes it anew.
        """
        seen = _inode(self.path(key))
        try:
            data = self.read(key)
            try:
                arrays: Arrays = load(data)
            except SafetensorError as error:
                raise ArtifactCorrupt(f"{self.path(key) / TENSORS} is no safetensors file: {error}") from error
        except ArtifactCorrupt as error:
            try:
                aside = self._set_aside(key, str(error), seen)
            except OSError as why:
                raise ArtifactCorrupt(f"{error}; it cannot be moved out of the way: {why}{_advice(why)}") from error
            where = f"it was moved to {aside}" if aside.exists() else "another reader has moved it away"
            raise ArtifactCorrupt(f"{error}; {where}, and it is computed again for who needs it") from error
        self._note_use(key)
        return arrays

    def _note_use(self, key: str) -> None:
        path = self.path(key) / RECORD
        with contextlib.suppress(OSError):  # removed meanwhile, or a store that this worker may only read
            if abs(time.time() - path.stat().st_mtime) > USE_NOTED_EVERY_S:
                os.utime(path)

    def _set_aside(self, key: str, why: str, seen: int | None) -> Path:
        """Move out of its place what was seen there, and not what another writer has put there since."""
        aside = self.root / CORRUPT / f"{key}-{uuid.uuid4().hex[:8]}"
        aside.parent.mkdir(parents=True, exist_ok=True)
        place = self.path(key)
        with contextlib.suppress(FileNotFoundError):  # another reader was faster
            if _inode(place) == seen:
                place.rename(aside)
                os.utime(aside)  # its age counts from here
                log.warning("a corrupt artifact was set aside: %s, as %s: %s", key, aside, why)
        return aside

    # -- what there is, and what may go ----------------------------------------------------------------------------

    def keys(self) -> Iterator[str]:
        """Every key in the store."""
        for place in self._places():
            if not place.name.startswith("."):
                yield place.name

    def stored(self) -> Iterator[Stored]:
        """Every whole artifact with its size and last use."""
        for key in self.keys():
            place = self.path(key)
            with contextlib.suppress(FileNotFoundError):  # a part of one, or it was removed in between
                record, tensors = (place / RECORD).stat(), (place / TENSORS).stat()
                yield Stored(key, record.st_size + tensors.st_size, record.st_mtime)

    def corrupt(self) -> list[Path]:
        """What was found corrupt and set aside."""
        folder = self.root / CORRUPT
        return sorted(folder.iterdir()) if folder.is_dir() else []

    def leftovers(self, grace_s: float = GRACE_S) -> list[Path]:
        """Directories of writers that died and of removals that did not end, and parts of artifacts."""
        found = []
        for place in self._places():
            name = place.name
            if name.startswith(TEMPORARY):
                left = is_abandoned(place, grace_s)
            else:
                left = name.startswith(REMOVED) or (not (place / RECORD).exists() and is_abandoned(place, grace_s))
            if left:
                found.append(place)
        return found

    def remove(self, key: str) -> Path:
        """Take an artifact away, all at once; returns the directory that is left to be deleted.

        Raises:
            ArtifactMissing: when there is none.
            ArtifactError: when it cannot be moved.
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
        for shelf in sorted(self.root.glob("[0-9a-f][0-9a-f]")):
            yield from sorted(shelf.iterdir())


def _advice(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "; free some space, or let `creditgrid gc` remove artifacts that no sweep needs"
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return "; whoever runs the workers must be able to write there"
    return ""


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except OSError:  # whoever reads there says why
        return None


def _contiguous(array: Any) -> Any:
    return np.ascontiguousarray(array) if array.ndim else array
