"""Lost artifacts are computed again, by a new call; the calls that need them wait."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import sqlalchemy as sa
import structlog

from creditgrid.core.experiments.registry import registry
from creditgrid.core.packed_tasks import parents_in
from creditgrid.core.states import State
from creditgrid.service.ledger import transitions
from creditgrid.service.ledger.counts import sweeps_needing
from creditgrid.service.ledger.ownership import claim
from creditgrid.service.ledger.queries import task_row
from creditgrid.workers.artifacts import ArtifactStore

log = structlog.get_logger()


class CannotRecompute(Exception):
    """An artifact is lost and cannot be computed here; the text says what to do."""


def recompute_inputs(connection: sa.Connection, store: ArtifactStore, call: int, keys: Iterable[str]) -> bool:
    """Let a pending call wait for these inputs, and compute those that are lost and that no call computes yet.

    Returns:
        whether an input is lost, so that the call waits.

    Raises:
        CannotRecompute: an artifact was imported, or this ledger does not know its task.
    """
    missing = sorted(set(keys))
    needing = sweeps_needing(connection, call, hidden=True)
    for key in missing:
        _recompute(connection, store, needing, key)
    awaited = [key for key in missing if not store.has(key)]
    transitions.await_tasks(connection, call, awaited)
    transitions.count_waits(connection, missing)
    for sweep in needing:
        claim(connection, sweep)
    return bool(awaited)


def _recompute(connection: sa.Connection, store: ArtifactStore, needing: Sequence[str], key: str) -> None:
    if store.has(key):
        return
    row = task_row(connection, key)
    if row is None:
        raise CannotRecompute(
            f"the artifact {key[:12]} is gone and this ledger does not know it: submit the sweep again"
        )
    if row.state == State.PENDING:
        transitions.need_stage(connection, key, row.kind, row.call, needing)
        return
    kind = registry().kinds.get(row.kind)
    if kind is None or kind.run is None:
        raise CannotRecompute(f"the {row.kind} {key[:12]} is gone and cannot be computed: import it again, then retry")
    call = transitions.recompute_task(connection, key, row.kind, needing)
    parents = sorted(set(parents_in(row.shared).values()))
    for parent in parents:
        _recompute(connection, store, needing, parent)
    transitions.await_tasks(connection, call, [parent for parent in parents if not store.has(parent)])
    transitions.count_waits(connection, parents)
    log.warning("artifact is computed again", kind=row.kind, key=key, call=call)
