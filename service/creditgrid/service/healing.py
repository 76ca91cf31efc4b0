"""Artifacts that were made and are not there whole any more: they are made again, and who needs them waits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import sqlalchemy as sa
import structlog

from creditgrid.core.registry import registry
from creditgrid.core.states import OPEN, State
from creditgrid.service import db
from creditgrid.service.plan_writer import load_task
from creditgrid.workers.artifacts import ArtifactStore

log = structlog.get_logger()


class CannotHeal(Exception):
    """An artifact is gone and nothing here can make it; the text says what to do."""


def make_again(connection: sa.Connection, store: ArtifactStore, call: int, keys: Iterable[str]) -> bool:
    """Let a pending call wait for these inputs, which are computed anew unless somebody is at it already.

    Returns:
        whether there is one to wait for.

    Raises:
        CannotHeal: for an artifact that came from outside, or that this ledger does not know how to make.
    """
    missing = sorted(set(keys))
    needing = db.sweeps_of(connection, call)
    for key in missing:
        _revive(connection, store, needing, key)
    awaited = [key for key in missing if not store.has(key)]
    _wait_for(connection, call, awaited)
    db.recount(connection, missing)
    for sweep in needing:
        db.claim(connection, sweep)
    return bool(awaited)


def _revive(connection: sa.Connection, store: ArtifactStore, needing: Sequence[str], key: str) -> None:
    if store.has(key):
        return
    row = connection.execute(sa.select(db.tasks).where(db.tasks.c.key == key)).one_or_none()
    if row is None:
        raise CannotHeal(f"the artifact {key[:12]} is gone and this ledger does not know it: submit the sweep again")
    if row.state == State.PENDING:
        _show(connection, needing, key, row.call)
        return
    kind = registry().kinds.get(row.kind)
    if kind is None or kind.run is None:
        raise CannotHeal(f"the {row.kind} {key[:12]} is gone and cannot be computed: import it again, then retry")
    task = load_task(row.key, row.kind, row.payload)
    made = connection.execute(db.calls.insert().values(sweep=needing[0], kind=row.kind, state=State.PENDING, size=1))
    call = int(made.inserted_primary_key[0])  # type: ignore[index]
    connection.execute(db.tasks.update().where(db.tasks.c.key == key).values(state=State.PENDING, call=call))
    opened = sa.select(db.sweeps.c.id).where(db.sweeps.c.state.in_(OPEN))
    shown = db.stages.update().where(db.stages.c.key == key, db.stages.c.sweep.in_(opened))
    connection.execute(shown.values(state=State.PENDING, call=call))
    _show(connection, needing, key, call)
    parents = sorted(set(task.parents.values()))
    for parent in parents:
        _revive(connection, store, needing, parent)
    _wait_for(connection, call, [parent for parent in parents if not store.has(parent)])
    db.recount(connection, parents)
    log.warning("artifact is made again", kind=row.kind, key=key, call=call)


def _show(connection: sa.Connection, needing: Sequence[str], key: str, call: int) -> None:
    """Let every sweep that needs the task have it among its stages, also those that did not need it until now."""
    have = set(connection.scalars(sa.select(db.stages.c.sweep).where(db.stages.c.key == key)))
    rows = [{"sweep": s, "key": key, "call": call, "state": State.PENDING} for s in needing if s not in have]
    db.insert_many(connection, db.stages, rows)


def _wait_for(connection: sa.Connection, call: int, keys: Iterable[str]) -> None:
    waited = set(connection.scalars(sa.select(db.waits.c.key).where(db.waits.c.call == call)))
    db.insert_many(connection, db.waits, [{"call": call, "key": key} for key in keys if key not in waited])
