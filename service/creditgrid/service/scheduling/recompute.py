"""Artifacts that were made and are not there whole any more: they are made again, and who needs them waits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import sqlalchemy as sa
import structlog

from creditgrid.core.experiments.registry import registry
from creditgrid.core.states import OPEN, State
from creditgrid.service.ledger import tables
from creditgrid.service.ledger.tables import load_task
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
    needing = tables.sweeps_of(connection, call)
    for key in missing:
        _revive(connection, store, needing, key)
    awaited = [key for key in missing if not store.has(key)]
    _wait_for(connection, call, awaited)
    tables.recount(connection, missing)
    for sweep in needing:
        tables.claim(connection, sweep)
    return bool(awaited)


def _revive(connection: sa.Connection, store: ArtifactStore, needing: Sequence[str], key: str) -> None:
    if store.has(key):
        return
    row = connection.execute(sa.select(tables.tasks).where(tables.tasks.c.key == key)).one_or_none()
    if row is None:
        raise CannotHeal(f"the artifact {key[:12]} is gone and this ledger does not know it: submit the sweep again")
    if row.state == State.PENDING:
        _show(connection, needing, key, row.call)
        return
    kind = registry().kinds.get(row.kind)
    if kind is None or kind.run is None:
        raise CannotHeal(f"the {row.kind} {key[:12]} is gone and cannot be computed: import it again, then retry")
    task = load_task(row.key, row.kind, row.payload)
    made = connection.execute(
        tables.calls.insert().values(sweep=needing[0], kind=row.kind, state=State.PENDING, size=1)
    )
    call = int(made.inserted_primary_key[0])  # type: ignore[index]
    connection.execute(tables.tasks.update().where(tables.tasks.c.key == key).values(state=State.PENDING, call=call))
    opened = sa.select(tables.sweeps.c.id).where(tables.sweeps.c.state.in_(OPEN))
    shown = tables.stages.update().where(tables.stages.c.key == key, tables.stages.c.sweep.in_(opened))
    connection.execute(shown.values(state=State.PENDING, call=call))
    _show(connection, needing, key, call)
    parents = sorted(set(task.parents.values()))
    for parent in parents:
        _revive(connection, store, needing, parent)
    _wait_for(connection, call, [parent for parent in parents if not store.has(parent)])
    tables.recount(connection, parents)
    log.warning("artifact is made again", kind=row.kind, key=key, call=call)


def _show(connection: sa.Connection, needing: Sequence[str], key: str, call: int) -> None:
    """Let every sweep that needs the task have it among its stages, also those that did not need it until now."""
    have = set(connection.scalars(sa.select(tables.stages.c.sweep).where(tables.stages.c.key == key)))
    rows = [{"sweep": s, "key": key, "call": call, "state": State.PENDING} for s in needing if s not in have]
    tables.insert_many(connection, tables.stages, rows)


def _wait_for(connection: sa.Connection, call: int, keys: Iterable[str]) -> None:
    waited = set(connection.scalars(sa.select(tables.waits.c.key).where(tables.waits.c.call == call)))
    tables.insert_many(connection, tables.waits, [{"call": call, "key": key} for key in keys if key not in waited])
