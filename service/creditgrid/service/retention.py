"""Select and delete unneeded artifacts: by age and size, and never what an open sweep needs.

An artifact can be computed again, so it may be deleted when nothing needs it now. An imported checkpoint cannot, nor an
artifact of a plugin that is no longer installed: both stay. Selecting and removing happen under the planning lock, so
no plan counts on an artifact that is removed. An ended sweep keeps its rows, and its cells stay cached.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import sqlalchemy as sa
import structlog

from creditgrid.core.errors import ArtifactError, ArtifactMissing
from creditgrid.core.experiments.registry import registry
from creditgrid.core.packed_tasks import parents_in
from creditgrid.core.states import OPEN, State
from creditgrid.core.wire import RetentionRequest, RetentionView
from creditgrid.service.ledger import tables
from creditgrid.service.ledger.ledger import Ledger
from creditgrid.service.ledger.queries import task_states
from creditgrid.service.log_retention import LogRetention
from creditgrid.service.people.actor import OPERATOR, Actor
from creditgrid.service.people.audit import record
from creditgrid.workers.artifacts import ArtifactStore, Stored
from creditgrid.workers.call_log import abandoned_logs
from creditgrid.workers.resume_state import abandoned_resume_states, resume_states

RESUME_STATES_KEPT_S = 24 * 3600.0
"""How long the resume state of a cancelled or failed call is kept: a retry continues from it."""
LOGS_SHARE = 0.03
"""The share of the time that bounding logs may take: there may be many."""
ROWS_AT_ONCE = 10_000

log = structlog.get_logger()


class Retention:
    """For one store and its ledger; ``planning`` is the planning lock."""

    def __init__(self, ledger: Ledger, store: ArtifactStore, planning: threading.Lock) -> None:
        self._ledger, self._store, self._planning = ledger, store, planning
        self._logs, self._logs_due = LogRetention(ledger, store.root), 0.0

    def run(self, request: RetentionRequest, actor: Actor = OPERATOR) -> RetentionView:
        """Delete what the request selects; with ``dry_run`` only report it.

        Leftovers are always selected: files of dead writers, and resume states that no call will use. An age and a
        size select artifacts too, and the age also selects logs, and artifacts that were set aside as corrupt.

        Raises:
            ArtifactError: something cannot be deleted; what was deleted before it stays deleted.
        """
        with self._planning:
            needed, stored = self._needed(), list(self._store.stored())
            selected = list(self._select(request, stored, needed))
            leftovers = self._leftovers(request.older_than_s) | self._old_logs(request.older_than_s)
            if not request.dry_run:
                with self._ledger.write() as connection:
                    record(connection, actor, "gc", "", f"{len(selected):,} artifacts, {len(leftovers):,} leftovers")
            removed = [] if request.dry_run else [self._remove(artifact.key) for artifact in selected]
        if not request.dry_run:
            # Deleting large files is slow. They have left their places, so planning does not wait for it.
            _delete([*(path for path in removed if path is not None), *leftovers])
        keys = {artifact.key for artifact in selected}
        kept = [artifact for artifact in stored if artifact.key not in keys]
        view = RetentionView(
            dry_run=request.dry_run,
            removed=len(selected),
            removed_bytes=sum(artifact.bytes for artifact in selected),
            kept=len(kept),
            kept_bytes=sum(artifact.bytes for artifact in kept),
            in_use=sum(artifact.key in needed for artifact in kept),
            leftovers=len(leftovers),
            leftover_bytes=sum(leftovers.values()),
        )
        log.info("retention", **view.model_dump())
        return view

    def tidy(self) -> int:
        """Delete leftovers alone; returns how many.

        Raises:
            ArtifactError: one cannot be deleted.
        """
        leftovers = self._leftovers(None)
        _delete(leftovers)
        return len(leftovers)

    def bound_logs(self) -> int:
        """Bound what tasks have printed, unless that was done a moment ago; returns how many logs were removed.

        Raises:
            OSError: one cannot be written or removed.
        """
        started = time.monotonic()
        if started < self._logs_due:
            return 0
        removed = self._logs.bound()
        self._logs_due = time.monotonic() + (time.monotonic() - started) / LOGS_SHARE
        return removed

    def _select(self, request: RetentionRequest, stored: Iterable[Stored], needed: set[str]) -> Iterator[Stored]:
        """The unneeded artifacts that are too old or too much, the longest unused first."""
        artifacts = sorted(stored, key=lambda artifact: (artifact.used_at, artifact.key))
        left = sum(artifact.bytes for artifact in artifacts)
        now = time.time()
        for artifact in artifacts:
            old = request.older_than_s is not None and now - artifact.used_at > request.older_than_s
            over = request.max_bytes is not None and left > request.max_bytes
            if (old or over) and artifact.key not in needed and self._can_be_computed_again(artifact.key):
                left -= artifact.bytes
                yield artifact

    def _can_be_computed_again(self, key: str) -> bool:
        try:
            payload = self._store.record(key).get("payload")
        except ArtifactError:  # damaged: the next reader sets it aside
            return False
        kind = registry().kinds.get(payload.get("kind", "")) if isinstance(payload, dict) else None
        return kind is not None and kind.run is not None

    def _remove(self, key: str) -> Path | None:
        with suppress(ArtifactMissing):  # a reader has set it aside as corrupt since it was listed
            return self._store.remove(key)
        return None

    def _leftovers(self, corrupt_older_than_s: float | None) -> dict[Path, int]:
        """Files and directories that nobody will use, with their bytes."""
        root = self._store.root
        paths = [*self._store.leftovers(), *abandoned_resume_states(root), *self._unused_resume_states()]
        paths += abandoned_logs(root)
        if corrupt_older_than_s is not None:
            paths += [path for path in self._store.corrupt() if _age(path) > corrupt_older_than_s]
        return {path: _size(path) for path in paths}

    def _old_logs(self, older_than_s: float | None) -> dict[Path, int]:
        return {} if older_than_s is None else {path: _size(path) for path in self._logs.older_than(older_than_s)}

    def _unused_resume_states(self) -> list[Path]:
        """Resume states of calls that have succeeded, or ended otherwise long ago."""
        kept = resume_states(self._store.root)
        with self._ledger.read() as connection:
            known = task_states(connection, list(kept))
        states = {key: known[key][0] if key in known else None for key in kept}
        return [
            path
            for key, path in kept.items()
            if states[key] in (State.SUCCEEDED, State.CACHED)
            or (states[key] is not State.PENDING and _age(path) > RESUME_STATES_KEPT_S)
        ]

    def _needed(self) -> set[str]:
        """Keys of the stages of open sweeps, of open tasks, and of the inputs of open tasks."""
        with self._ledger.read() as connection:
            opened = sa.select(tables.sweeps.c.id).where(tables.sweeps.c.state.in_(OPEN))
            needed = set(connection.scalars(sa.select(tables.stages.c.key).where(tables.stages.c.sweep.in_(opened))))
            c = tables.tasks.c
            of_open_call = tables.tasks.join(tables.calls, tables.calls.c.id == c.call)
            pending = sa.and_(c.state == State.PENDING, tables.calls.c.state.in_(OPEN))
            reading = connection.execution_options(yield_per=ROWS_AT_ONCE)
            needed.update(reading.scalars(sa.select(c.key).select_from(of_open_call).where(pending)))
            for shared in reading.scalars(sa.select(c.shared).select_from(of_open_call).where(pending).distinct()):
                needed.update(parents_in(shared).values())
        return needed


def _age(path: Path) -> float:
    """Seconds; negative after the clock was set back."""
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:  # deleted meanwhile
        return 0.0


def _size(path: Path) -> int:
    total = 0
    for folder, _, files in os.walk(path):
        for name in files:
            with suppress(FileNotFoundError):
                total += (Path(folder) / name).stat().st_size
    if path.is_file():
        with suppress(FileNotFoundError):
            stat = path.stat()
            total += min(stat.st_size, stat.st_blocks * 512)  # a log has a hole
    return total


def _delete(paths: Iterable[Path]) -> None:
    for path in paths:
        try:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        except FileNotFoundError:  # its writer, or another run, has deleted it
            continue
        except OSError as error:
            raise ArtifactError(f"{path} cannot be deleted: {error}") from error
