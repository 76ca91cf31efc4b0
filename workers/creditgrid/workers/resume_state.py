"""Where long calls stood when they were interrupted: one file a call, replaced as it goes on, gone at its end.

A save is no artifact: it belongs to a call that has no result yet, and only another attempt at what that call was last
to make reads it. So two calls of one group, such as two sweeps' epochs of one training, do not meet.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors import SafetensorError
from safetensors.numpy import load, save

from creditgrid.core.files import atomic_file
from creditgrid.core.task import Arrays, Inputs, Saved
from creditgrid.workers.temporary_names import GRACE_S, is_abandoned, temporary_name

log = logging.getLogger(__name__)

FOLDER = "saves"
EVERY_S = 2.0
"""A run is saved no more often than this, …"""
SHARE = 0.05
"""… nor so often that saving takes more than this share of its time; but always after an artifact."""


class ResumeState:
    """What is saved of the call that makes the artifact ``last`` of a group, below the artifact store's root."""

    def __init__(self, root: Path, group: str, last: str) -> None:
        self._group = group
        self._path = root / FOLDER / last
        self._next = time.monotonic() + EVERY_S

    def restore(self, inputs: Inputs) -> Inputs:
        """The inputs, with what an earlier attempt saved under the group's key if it is there whole."""
        try:
            content = self._path.read_bytes()
        except FileNotFoundError:
            return inputs
        except OSError as error:
            log.warning("a save cannot be read, and the run begins anew: %s", error)
            return inputs
        digest, data = content[:64], content[64:]
        with contextlib.suppress(SafetensorError):
            if hashlib.sha256(data).hexdigest().encode() == digest:
                saved: Mapping[str, Arrays] = {self._group: load(data)}
                return {**inputs, **saved}
        self._path.unlink(missing_ok=True)  # damaged: the run begins anew, and loses nothing but time
        return inputs

    def save(self, saved: Saved) -> None:
        """Replace what is kept, if it is time for that; where it cannot be written, the run goes on without."""
        began = time.monotonic()
        if began < self._next:
            return
        try:
            self._write(save(dict(saved.state())))
        except OSError as error:
            log.warning("a save cannot be written, and an interruption would begin anew: %s", error)
        now = time.monotonic()
        self._next = now + max(EVERY_S, (now - began) / SHARE)

    def _write(self, data: bytes) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(self._path, temporary_name(".", self._path.name)) as file:
            file.write(hashlib.sha256(data).hexdigest().encode())
            file.write(data)

    def save_next(self) -> None:
        """Let the next save be kept whatever the time."""
        self._next = 0.0

    def hand_over(self, left: Sequence[str]) -> None:
        """Let the next attempt find what is kept, which has just what is ``left`` to make."""
        if not left or left[-1] == self._path.name:
            return
        try:
            self._path.replace(self._path.with_name(left[-1]))
        except FileNotFoundError:
            return
        except OSError as error:
            log.warning("a save cannot be handed on, and the run begins anew: %s", error)

    def delete(self) -> None:
        """Forget what is kept: the run is through."""
        try:
            self._path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("a save that nothing needs any more cannot be removed: %s", error)


def resume_states(root: Path) -> dict[str, Path]:
    """The saves below an artifact store's root, by the key of the artifact that their call was to make last."""
    return {path.name: path for path in _files(root) if not path.name.startswith(".")}


def abandoned_resume_states(root: Path, grace_s: float = GRACE_S) -> list[Path]:
    """ResumeState whose writer died over them."""
    return [path for path in _files(root) if path.name.startswith(".") and is_abandoned(path, grace_s)]


def _files(root: Path) -> list[Path]:
    folder = root / FOLDER
    return sorted(folder.iterdir()) if folder.is_dir() else []
