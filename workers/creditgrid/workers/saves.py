"""Where long runs stood when they were interrupted: one file a group, replaced as it goes on, gone at its end.

A save is no artifact: it belongs to a run that has no result yet, and nothing but another attempt at that run reads it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
import uuid
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.numpy import load, save

from creditgrid.core.task import Arrays, Inputs, Saved

FOLDER = "saves"
EVERY_S = 2.0
"""A run is saved no more often than this, …"""
SHARE = 0.05
"""… nor so often that saving takes more than this share of its time; but always after an artifact."""


class Saves:
    """What is saved of one group below the artifact store's root."""

    def __init__(self, root: Path, group: str) -> None:
        self._group = group
        self._path = root / FOLDER / group
        self._next = time.monotonic() + EVERY_S

    def offer(self, inputs: Inputs) -> Inputs:
        """The inputs, with what an earlier attempt saved under the group's key if it is there whole."""
        try:
            content = self._path.read_bytes()
        except FileNotFoundError:
            return inputs
        digest, data = content[:64], content[64:]
        with contextlib.suppress(SafetensorError):
            if hashlib.sha256(data).hexdigest().encode() == digest:
                saved: Mapping[str, Arrays] = {self._group: load(data)}
                return {**inputs, **saved}
        self._path.unlink(missing_ok=True)  # damaged: the run begins anew, and loses nothing but time
        return inputs

    def keep(self, saved: Saved) -> None:
        """Replace what is kept, if it is time for that.

        Raises:
            OSError: when it cannot be written.
        """
        began = time.monotonic()
        if began < self._next:
            return
        data = save(dict(saved.state()))
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_name(f".{self._path.name}-{uuid.uuid4().hex}")
        try:
            with temporary.open("wb") as file:
                file.write(hashlib.sha256(data).hexdigest().encode())
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self._path)
        finally:
            temporary.unlink(missing_ok=True)
        now = time.monotonic()
        self._next = now + max(EVERY_S, (now - began) / SHARE)

    def due(self) -> None:
        """Let the next save be kept whatever the time."""
        self._next = 0.0

    def drop(self) -> None:
        """Forget what is kept: the run is through."""
        self._path.unlink(missing_ok=True)
