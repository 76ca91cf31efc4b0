"""How many cells and stages of a sweep are in each state, and which calls compute the open ones.

``counts`` makes a status O(1) in the size of the sweep, and ``backlog`` the time left; ``needs`` makes a step of a call
O(1) in the size of the call.
Only ``transitions`` changes them, in the same transaction as the states that they sum up.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from creditgrid.core.states import OPEN, State
from creditgrid.service.ledger.tables import (
    CELLS,
    backlog,
    calls,
    cells,
    chunks,
    counts,
    needs,
    one_of,
    stages,
    sweeps,
    tasks,
)

# Text, because SQLAlchemy has no INSERT … SELECT … ON CONFLICT for both databases.
_ADD = (
    "INSERT INTO counts (sweep, kind, state, n) {} "
    "ON CONFLICT (sweep, kind, state) DO UPDATE SET n = counts.n + excluded.n"
)
_ADD_ONE = sa.text(_ADD.format("VALUES (:sweep, :kind, :state, :n)"))
_NEED_MORE = sa.text(
    "INSERT INTO needs (call, sweep, kind, open) VALUES (:call, :sweep, :kind, :n) "
    "ON CONFLICT (call, sweep, kind) DO UPDATE SET open = needs.open + excluded.open"
)
_BACKLOG = (
    "INSERT INTO backlog (sweep, kind, level, scale, planned, open, launches, flops, elements) "
    "SELECT need.sweep, calls.kind, calls.level, calls.scale, {planned}, {sign} * count(*), "
    "{sign} * coalesce(sum(calls.launches), 0), {sign} * coalesce(sum(calls.flops), 0), "
    "{sign} * coalesce(sum(calls.elements), 0) FROM (SELECT DISTINCT call, sweep FROM needs WHERE {which}) AS need "
    "JOIN calls ON calls.id = need.call WHERE true GROUP BY need.sweep, calls.kind, calls.level, calls.scale "
    "ON CONFLICT (sweep, kind, level, scale) DO UPDATE SET planned = backlog.planned + excluded.planned, "
    "open = backlog.open + excluded.open, launches = backlog.launches + excluded.launches, "
    "flops = backlog.flops + excluded.flops, elements = backlog.elements + excluded.elements"
)
_BACKLOG_OF_SWEEP = sa.text(_BACKLOG.format(sign="1", planned="count(*)", which="sweep = :sweep"))
_BACKLOG_GROWS = sa.text(_BACKLOG.format(sign="1", planned="count(*)", which="call = :call"))
_BACKLOG_WITHOUT = sa.text(_BACKLOG.format(sign="-1", planned="-count(*)", which="call = :call"))
_BACKLOG_SHRINKS = sa.text(_BACKLOG.format(sign="-1", planned="0", which="call = :call"))
_BACKLOG_LEFT = sa.text(_BACKLOG.format(sign="-1", planned="0", which="call = :call AND open <= 0"))
_CELLS: sa.ColumnElement[str] = sa.literal_column(f"'{CELLS}'", sa.String)
_CALL: sa.BindParameter[int] = sa.bindparam("call")
_SWEEP: sa.BindParameter[str] = sa.bindparam("sweep")
_DROP_CALL = needs.delete().where(needs.c.call == _CALL)
_NEEDING = (
    sa.select(sweeps.c.id)
    .where(sweeps.c.id.in_(sa.select(needs.c.sweep).where(needs.c.call == _CALL)), one_of(sweeps.c.state, OPEN))
    .order_by(sweeps.c.seq)
)
_SWEEPS_NEEDING = _NEEDING.where(sweeps.c.planned)
_KINDS = sa.select(needs.c.kind).where(needs.c.call == _CALL).distinct()
_COUNTS = sa.select(counts.c.state, counts.c.n).where(counts.c.sweep == _SWEEP, counts.c.kind == CELLS, counts.c.n > 0)


# -- read ------------------------------------------------------------------------------------------------------------


def count_cells(connection: sa.Connection, sweep: str) -> dict[State, int]:
    """Cells by state, without the states that no cell has; an open cell has the state of its call."""
    return {State(state): n for state, n in connection.execute(_COUNTS, {"sweep": sweep})}


def count_all(connection: sa.Connection, ids: Iterable[str]) -> dict[str, dict[str, dict[State, int]]]:
    """Counts of several sweeps: by sweep, then by kind (``CELLS`` for cells), then by state."""
    found: dict[str, dict[str, dict[State, int]]] = defaultdict(lambda: defaultdict(dict))
    query = sa.select(counts).where(counts.c.sweep.in_(list(ids)), counts.c.n > 0)
    for row in connection.execute(query.order_by(counts.c.sweep, counts.c.kind)):
        found[row.sweep][row.kind][State(row.state)] = row.n
    return found


def count_open(connection: sa.Connection) -> dict[State, int]:
    """Cells by state of all sweeps that have not ended."""
    opened = sa.select(sweeps.c.id).where(sweeps.c.state.in_(OPEN), sweeps.c.planned)
    query = sa.select(counts.c.state, sa.func.sum(counts.c.n)).where(counts.c.kind == CELLS, counts.c.sweep.in_(opened))
    return {State(state): int(n) for state, n in connection.execute(query.group_by(counts.c.state))}


def sweeps_needing(connection: sa.Connection, call: int, *, hidden: bool = False) -> list[str]:
    """The open sweeps that need this call, the oldest first; with ``hidden`` also those that are being planned."""
    return list(connection.scalars(_NEEDING if hidden else _SWEEPS_NEEDING, {"call": call}))


def has_stages(connection: sa.Connection, call: int) -> bool:
    """Whether tasks of the call may be stages. Others are cells alone, and no call waits for them."""
    kinds = connection.scalars(_KINDS, {"call": call}).all()
    return not kinds or any(kind != CELLS for kind in kinds)


def calls_needed_by(sweep: str) -> sa.Select[int]:
    """The calls that open cells and stages of the sweep need."""
    return sa.select(needs.c.call).where(needs.c.sweep == sweep)


def open_needs(
    connection: sa.Connection, ids: Sequence[str], among: Sequence[int]
) -> dict[str, dict[int, dict[str, int]]]:
    """How many open tasks these sweeps have in these calls: by sweep, call and kind."""
    found: dict[str, dict[int, dict[str, int]]] = defaultdict(lambda: defaultdict(dict))
    query = sa.select(needs).where(needs.c.sweep.in_(ids))
    for piece in chunks(among):
        for row in connection.execute(query.where(needs.c.call.in_(piece))):
            found[row.sweep][row.call][row.kind] = row.open
    return found


def backlogs(connection: sa.Connection, ids: Sequence[str]) -> dict[str, list[sa.Row[Any]]]:
    """The rows of ``backlog`` by sweep, without those of which no call is open."""
    found: dict[str, list[sa.Row[Any]]] = defaultdict(list)
    for row in connection.execute(sa.select(backlog).where(backlog.c.sweep.in_(ids), backlog.c.planned > 0)):
        found[row.sweep].append(row)
    return found


# -- keep ------------------------------------------------------------------------------------------------------------


def shift(connection: sa.Connection, call: int, before: tuple[State, ...], after: State) -> None:
    """Cells and stages of the call change state with it, if the call is in one of the states ``before``."""
    connection.execute(_shift(before), {"call": call, "after": after})


@functools.cache
def _shift(before: tuple[State, ...]) -> sa.TextClause:
    legal = ", ".join(f"'{state}'" for state in before)
    needed = f"FROM needs JOIN calls ON calls.id = needs.call WHERE needs.call = :call AND calls.state IN ({legal})"
    gone = f"SELECT needs.sweep, needs.kind, calls.state, -needs.open {needed}"
    return sa.text(_ADD.format(f"SELECT needs.sweep, needs.kind, :after, needs.open {needed} UNION ALL {gone}"))


def add(connection: sa.Connection, sweep: str, kind: str, state: str, n: int) -> None:
    """There are ``n`` more cells or stages in this state."""
    connection.execute(_ADD_ONE, {"sweep": sweep, "kind": kind, "state": state, "n": n})


def need(connection: sa.Connection, call: int, sweep: str, kind: str, n: int) -> None:
    """The call computes ``n`` more open cells or stages of the sweep."""
    connection.execute(_NEED_MORE, {"call": call, "sweep": sweep, "kind": kind, "n": n})


def add_many(connection: sa.Connection, sweep: str, more: Mapping[tuple[str, str], int]) -> None:
    """There are so many more cells or stages of the sweep, by kind and state."""
    rows = [{"sweep": sweep, "kind": kind, "state": state, "n": n} for (kind, state), n in more.items()]
    if rows:
        connection.execute(_ADD_ONE, rows)


def need_many(connection: sa.Connection, sweep: str, more: Mapping[tuple[str, int], int]) -> None:
    """Calls compute so many more open cells or stages of the sweep, by kind and call."""
    rows = [{"call": call, "sweep": sweep, "kind": kind, "n": n} for (kind, call), n in more.items()]
    if rows:
        connection.execute(_NEED_MORE, rows)


def drop_call(connection: sa.Connection, call: int) -> None:
    """Nothing needs the call any more."""
    connection.execute(_DROP_CALL, {"call": call})


def leave_call(connection: sa.Connection, call: int) -> None:
    """Sweeps that have no open task in the call any more do not need it."""
    connection.execute(_BACKLOG_LEFT, {"call": call})
    connection.execute(needs.delete().where(needs.c.call == call, needs.c.open <= 0))


def end_call(connection: sa.Connection, call: int) -> None:
    """Nothing needs the call any more: it has ended."""
    connection.execute(_BACKLOG_SHRINKS, {"call": call})
    drop_call(connection, call)


def recount_backlog(connection: sa.Connection, sweep: str) -> None:
    """Count all open calls of the sweep again."""
    connection.execute(backlog.delete().where(backlog.c.sweep == sweep))
    connection.execute(_BACKLOG_OF_SWEEP, {"sweep": sweep})


def grow_backlog(connection: sa.Connection, call: int, sign: int = 1) -> None:
    """The call is one more in the backlog of each sweep that needs it; with ``sign`` -1, it was never there."""
    connection.execute(_BACKLOG_GROWS if sign > 0 else _BACKLOG_WITHOUT, {"call": call})


def calls_in_backlogs(connection: sa.Connection, some: Iterable[int]) -> list[int]:
    """Those of the calls that a sweep needs whose plan is whole."""
    found: list[int] = []
    needed = sa.select(needs.c.call).distinct().join(sweeps, sweeps.c.id == needs.c.sweep).where(sweeps.c.planned)
    for piece in chunks(some):
        found += connection.scalars(needed.where(needs.c.call.in_(piece)))
    return found


def recount_call(connection: sa.Connection, call: int) -> None:
    """Count again how many open cells and stages of each sweep the call computes."""
    drop_call(connection, call)
    for table in (cells, stages):
        _insert_needs(connection, table, table.c.call == call)


def recount_sweep(connection: sa.Connection, sweep: str) -> None:
    """Count all cells and stages of the sweep again."""
    for table in (needs, counts):
        connection.execute(table.delete().where(table.c.sweep == sweep))
    for table in (cells, stages):
        _insert_needs(connection, table, table.c.sweep == sweep)
        kind, found = _with_kind(table)
        state = sa.case(
            (table.c.state == State.PENDING, sa.func.coalesce(calls.c.state, table.c.state)), else_=table.c.state
        )
        query = (
            sa.select(table.c.sweep, kind, state, sa.func.count())
            .select_from(found.outerjoin(calls, calls.c.id == table.c.call))
            .where(table.c.sweep == sweep)
            .group_by(table.c.sweep, *_group(kind), state)
        )
        connection.execute(counts.insert().from_select(["sweep", "kind", "state", "n"], query))


def _insert_needs(connection: sa.Connection, table: sa.Table, which: sa.ColumnElement[bool]) -> None:
    kind, found = _with_kind(table)
    query = (
        sa.select(table.c.call, table.c.sweep, kind, sa.func.count())
        .select_from(found)
        .where(which, table.c.state == State.PENDING, table.c.call.is_not(None))
        .group_by(table.c.call, table.c.sweep, *_group(kind))
    )
    connection.execute(needs.insert().from_select(["call", "sweep", "kind", "open"], query))


def _with_kind(table: sa.Table) -> tuple[sa.ColumnElement[str], sa.FromClause]:
    """The kind under which the rows of ``cells`` or ``stages`` are counted, and what to select it from."""
    if table is cells:
        return _CELLS, cells
    return tasks.c.kind, stages.join(tasks, tasks.c.key == stages.c.key)


def _group(kind: sa.ColumnElement[str]) -> list[sa.ColumnElement[str]]:
    """PostgreSQL refuses to group by a constant."""
    return [] if kind is _CELLS else [kind]
