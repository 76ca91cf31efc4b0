"""Resume states of long calls: one file for each call, replaced as it runs, deleted when it has finished.

A resume state is no artifact: it belongs to a call without a result. Its file is named after the artifact that the call
makes last, and only another attempt to make that artifact reads it. So two calls of one group, such as two sweeps'
epochs of one training, do not share a file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from creditgrid.core.files import atomic_file
from creditgrid.core.task import Arrays, Inputs, Saved
from creditgrid.workers.temporary_names import GRACE_S, is_abandoned, temporary_name

log = logging.getLogger(__name__)

FOLDER = "saves"
CURVE = "creditgrid.curve"
"""The name of an array that holds the curve up to the saved state, as JSON. No task sees it."""
EVERY_S = 2.0
"""The shortest time between two saves."""
SHARE = 0.05
"""The largest share of the time that saving may take. The first save after an artifact is made in any case."""


class ResumeState:
    """The resume state of the call that makes the artifact ``last`` of a group, below the artifact store's root."""

    def __init__(self, root: Path, group: str, last: str) -> None:
        self._group = group
        self._path = root / FOLDER / last
        self._next = time.monotonic() + EVERY_S
        self.curve: Any = None
        """The curve that ``restore`` found, as it was given to ``save``."""

    def restore(self, inputs: Inputs) -> Inputs:
        """The inputs, plus what an earlier attempt saved, under the group's key."""
        try:
            content = self._path.read_bytes()
        except FileNotFoundError:
            return inputs
        except OSError as error:
            log.warning("a resume state cannot be read, so the run starts from the beginning: %s", error)
            return inputs
        digest, data = content[:64], content[64:]
        with contextlib.suppress(SafetensorError):
            if hashlib.sha256(data).hexdigest().encode() == digest:
                arrays = load(data)
                if (curve := arrays.pop(CURVE, None)) is not None:
                    self.curve = json.loads(curve.tobytes())
                saved: Mapping[str, Arrays] = {self._group: arrays}
                return {**inputs, **saved}
        self._path.unlink(missing_ok=True)  # it is damaged: the run starts from the beginning, which costs only time
        return inputs

    def save(self, saved: Saved, curve: Callable[[], Any] = lambda: None) -> None:
        """Replace what was saved, if enough time has passed. If it cannot be written, the run continues without.

        ``curve()`` is the curve up to here, as JSON.
        """
        started = time.monotonic()
        if started < self._next:
            return
        try:
            arrays = dict(saved.state())
            if (found := curve()) is not None:
                arrays[CURVE] = np.frombuffer(json.dumps(found).encode(), np.uint8)
            self._write(save(arrays))
        except OSError as error:
            log.warning("a resume state cannot be written, so an interrupted run would start again: %s", error)
        now = time.monotonic()
        self._next = now + max(EVERY_S, (now - started) / SHARE)

    def _write(self, data: bytes) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(self._path, temporary_name(".", self._path.name)) as file:
            file.write(hashlib.sha256(data).hexdigest().encode())
            file.write(data)

    def save_next(self) -> None:
        """Make the next ``save`` write, whatever the time."""
        self._next = 0.0

    def hand_over(self, left: Sequence[str]) -> None:
        """Rename what was saved for the next attempt, which makes exactly the artifacts ``left``."""
        if not left or left[-1] == self._path.name:
            return
        try:
            self._path.replace(self._path.with_name(left[-1]))
        except FileNotFoundError:
            return
        except OSError as error:
            log.warning("a resume state cannot be renamed, so the run starts from the beginning: %s", error)

    def delete(self) -> None:
        """Delete what was saved: the call has finished."""
        try:
            self._path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("a resume state that is not needed any more cannot be deleted: %s", error)


def resume_states(root: Path) -> dict[str, Path]:
    """The resume states below an artifact store's root, by the key of the artifact that their call makes last."""
    return {path.name: path for path in _files(root) if not path.name.startswith(".")}


def abandoned_resume_states(root: Path, grace_s: float = GRACE_S) -> list[Path]:
    """Temporary files of writers that died."""
    return [path for path in _files(root) if path.name.startswith(".") and is_abandoned(path, grace_s)]


def _files(root: Path) -> list[Path]:
    folder = root / FOLDER
    return sorted(folder.iterdir()) if folder.is_dir() else []
