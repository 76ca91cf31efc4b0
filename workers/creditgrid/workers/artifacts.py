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
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from creditgrid.core.errors import ArtifactCorrupt, ArtifactError, ArtifactMissing
from creditgrid.core.task import Arrays

TENSORS = "tensors.safetensors"
RECORD = "record.json"
TEMPORARY = ".writing-"
"""Prefix of directories that are being written, or were when their writer died."""


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
        """Whether the artifact is there whole (its directory appears at once)."""
        return (self.path(key) / RECORD).is_file()

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
        temporary = place.with_name(f"{TEMPORARY}{key}-{uuid.uuid4().hex}")
        try:
            temporary.mkdir(parents=True)
            _write(temporary / TENSORS, data)
            _write(temporary / RECORD, text.encode())
            _sync(temporary)
            try:
                temporary.rename(place)
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                    raise
                if self.has(key):
                    shutil.rmtree(temporary)
                else:  # someone took away a part of what stood there: the rest makes room
                    self._set_aside(key)
                    temporary.rename(place)
            _sync(place.parent)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise ArtifactError(f"the artifact {key[:12]} cannot be written below {self.root}: {error}") from error
        return len(data)

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
        record = self.record(key)
        path = self.path(key) / TENSORS
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise ArtifactCorrupt(f"{path} is gone while its record stands") from None
        except OSError as error:
            raise ArtifactError(f"the artifact {key[:12]} cannot be read: {error}") from error
        if hashlib.sha256(data).hexdigest() != record["sha256"]:
            raise ArtifactCorrupt(f"{path} is not what was written: its SHA-256 differs from the record's")
        return data

    def load(self, key: str) -> Arrays:
        """The tensors as NumPy arrays; raises as ``read`` does.

        A corrupt artifact is moved out of its place, below ``corrupt``, so that whoever asks again computes it anew.
        """
        try:
            data = self.read(key)
            try:
                arrays: Arrays = load(data)
            except SafetensorError as error:
                raise ArtifactCorrupt(f"{self.path(key) / TENSORS} is no safetensors file: {error}") from error
        except ArtifactCorrupt as error:
            aside = self._set_aside(key)
            raise ArtifactCorrupt(f"{error}; it was moved to {aside}: retry the sweep to compute it anew") from error
        return arrays

    def _set_aside(self, key: str) -> Path:
        aside = self.root / "corrupt" / f"{key}-{uuid.uuid4().hex[:8]}"
        aside.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # another reader was faster
            self.path(key).rename(aside)
        return aside

    def keys(self) -> Iterator[str]:
        """Every key in the store."""
        for shelf in sorted(self.root.glob("[0-9a-f][0-9a-f]")):
            for place in sorted(shelf.iterdir()):
                if not place.name.startswith(TEMPORARY):
                    yield place.name


def _contiguous(array: Any) -> Any:
    return np.ascontiguousarray(array) if array.ndim else array


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
