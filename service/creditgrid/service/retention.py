"""What may go from the artifact store, and its going: by age and size, never what an open sweep needs.

An artifact can be computed again, so one that is not needed now may go; an imported checkpoint cannot, nor can what a
plugin made that is not installed any more, and both stay. The lock that planning holds is held while it is decided and
done, so no plan counts on an artifact that is about to go. A sweep that ended keeps its rows whatever goes here: its
cells stay cached.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa
import structlog

from creditgrid.core.errors import ArtifactError, ArtifactMissing
from creditgrid.core.experiments.registry import registry
from creditgrid.core.states import OPEN, State
from creditgrid.core.wire import RetentionRequest, RetentionView
from creditgrid.service.ledger import tables
from creditgrid.service.ledger.ledger import Ledger
from creditgrid.workers.artifacts import ArtifactStore, Stored
from creditgrid.workers.resume_state import abandoned_resume_states, resume_states

SAVES_KEPT_S = 24 * 3600.0
"""How long it is remembered where a call stood that was cancelled or failed: a retry may go on from there."""
ROWS_AT_ONCE = 10_000

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Leftover:
    """A file or directory that nobody will use."""

    path: Path
    bytes: int


class Retention:
    """Over one store and the ledger of those who use it; ``planning`` is held while artifacts are chosen and go."""

    def __init__(self, ledger: Ledger, store: ArtifactStore, planning: threading.Lock) -> None:
        self._ledger, self._store, self._planning = ledger, store, planning

    def run(self, request: RetentionRequest) -> RetentionView:
        """Remove what is asked for, or with ``dry_run`` tell what would be.

        Without an age and a size only leftovers go: what dead writers left, and saves of calls that are over. What was
        set aside as corrupt goes at the same age as artifacts do.

        Raises:
            ArtifactError: when something cannot be removed; what went before it is gone.
        """
        with self._planning:
            needed, stored = self._needed(), list(self._store.stored())
            going = list(self._going(request, stored, needed))
            leftovers = self._leftovers(request.older_than_s)
            away = [] if request.dry_run else [self._take(artifact.key) for artifact in going]
        if not request.dry_run:
            # Slow for large ones, and nobody has to wait for it: they are out of their places.
            _delete([*(path for path in away if path is not None), *(leftover.path for leftover in leftovers)])
        gone = {artifact.key for artifact in going}
        kept = [artifact for artifact in stored if artifact.key not in gone]
        view = RetentionView(
            dry_run=request.dry_run,
            removed=len(going),
            removed_bytes=sum(artifact.bytes for artifact in going),
            kept=len(kept),
            kept_bytes=sum(artifact.bytes for artifact in kept),
            in_use=sum(artifact.key in needed for artifact in kept),
            leftovers=len(leftovers),
            leftover_bytes=sum(leftover.bytes for leftover in leftovers),
        )
        log.info("retention", **view.model_dump())
        return view

    def tidy(self) -> int:
        """Remove leftovers alone; returns how many.

        Raises:
            ArtifactError: when one cannot be removed.
        """
        leftovers = self._leftovers(None)
        _delete(leftover.path for leftover in leftovers)
        return len(leftovers)

    def _going(self, request: RetentionRequest, stored: Iterable[Stored], needed: set[str]) -> Iterator[Stored]:
        """Those that go, the longest unused first."""
        artifacts = sorted(stored, key=lambda artifact: (artifact.used_at, artifact.key))
        left = sum(artifact.bytes for artifact in artifacts)
        now = time.time()
        for artifact in artifacts:
            old = request.older_than_s is not None and now - artifact.used_at > request.older_than_s
            over = request.max_bytes is not None and left > request.max_bytes
            if (old or over) and artifact.key not in needed and self._can_be_made_again(artifact.key):
                left -= artifact.bytes
                yield artifact

    def _can_be_made_again(self, key: str) -> bool:
        try:
            payload = self._store.record(key).get("payload")
        except ArtifactError:  # damaged: whoever loads it sets it aside
            return False
        kind = registry().kinds.get(payload.get("kind", "")) if isinstance(payload, dict) else None
        return kind is not None and kind.run is not None

    def _take(self, key: str) -> Path | None:
        with suppress(ArtifactMissing):  # a reader set it aside as corrupt since it was listed
            return self._store.remove(key)
        return None

    # -- what is needed --------------------------------------------------------------------------------------------

    def _needed(self) -> set[str]:
        """Keys that open sweeps count on: their stages, and what open tasks stand on."""
        with self._ledger.read() as connection:
            opened = sa.select(tables.sweeps.c.id).where(tables.sweeps.c.state.in_(OPEN))
            needed = set(connection.scalars(sa.select(tables.stages.c.key).where(tables.stages.c.sweep.in_(opened))))
            c = tables.tasks.c
            pending = sa.select(c.key, c.payload).where(c.state == State.PENDING)
            for key, payload in connection.execution_options(yield_per=ROWS_AT_ONCE).execute(pending):
                needed.add(key)
                needed.update(json.loads(payload)["parents"].values())
        return needed

    # -- leftovers -------------------------------------------------------------------------------------------------

    def _leftovers(self, corrupt_older_than_s: float | None) -> list[Leftover]:
        root = self._store.root
        paths = [*self._store.leftovers(), *abandoned_resume_states(root), *self._saves_of_calls_that_are_over()]
        if corrupt_older_than_s is not None:
            paths += [path for path in self._store.corrupt() if _age(path) > corrupt_older_than_s]
        return [Leftover(path, _size(path)) for path in paths]

    def _saves_of_calls_that_are_over(self) -> list[Path]:
        saves = resume_states(self._store.root)
        states: dict[str, str] = {}
        with self._ledger.read() as connection:
            for piece in tables.chunks(saves):
                c = tables.tasks.c
                found = connection.execute(sa.select(c.key, c.state).where(c.key.in_(piece)))
                states.update((key, state) for key, state in found)
        over = []
        for key, path in saves.items():
            state = states.get(key)
            done = state in (State.SUCCEEDED, State.CACHED)
            if done or (state != State.PENDING and _age(path) > SAVES_KEPT_S):
                over.append(path)
        return over


def _age(path: Path) -> float:
    """Seconds; negative for what comes from the future, after a clock was set back."""
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:  # gone in between
        return 0.0


def _size(path: Path) -> int:
    total = 0
    for folder, _, files in os.walk(path):
        for name in files:
            with suppress(FileNotFoundError):
                total += (Path(folder) / name).stat().st_size
    if path.is_file():
        with suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


def _delete(paths: Iterable[Path]) -> None:
    for path in paths:
        try:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        except FileNotFoundError:  # its writer, or another run, was faster
            continue
        except OSError as error:
            raise ArtifactError(f"{path} cannot be removed: {error}") from error
