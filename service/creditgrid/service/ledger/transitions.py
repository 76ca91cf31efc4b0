"""The one place that changes the state of a sweep, a call, a task, a stage or a cell.

One function for each transition, named by intent. Each is part of one ledger transaction, in which it also keeps the
counts (``counts``), emits the events of the change (``events``), and counts again what other calls wait for. A step
that is not legal changes nothing.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import sqlalchemy as sa
import structlog

from creditgrid.core.states import FINISHED, OPEN, RESULT, State
from creditgrid.core.wire import TERMINAL_EVENT
from creditgrid.core.work import Work
from creditgrid.service.ledger import counts, task_states
from creditgrid.service.ledger.counts import calls_needed_by, count_cells, sweeps_needing
from creditgrid.service.ledger.engine import insert_many, insert_tuples
from creditgrid.service.ledger.events import emit_event, emit_to_all
from creditgrid.service.ledger.ownership import claim, hand_over, share_out
from creditgrid.service.ledger.past_calls import PastCall, record_call
from creditgrid.service.ledger.tables import (
    CELLS,
    CHUNK,
    NEVER_RUN,
    UNKNOWN,
    backlog,
    calls,
    cells,
    chunks,
    earlier_logs,
    idempotency,
    needs,
    new_log,
    one_of,
    stages,
    sweeps,
    tasks,
    waits,
)
from creditgrid.service.ledger.tables import counts as counts_table

Transitions: TypeAlias = Mapping[State, tuple[State, ...]]
"""From each state, the states that a step may lead to."""

_RESULTS = (State.SUCCEEDED, State.FAILED, State.CANCELLED)

SWEEP: Transitions = {
    State.PENDING: (State.RUNNING, State.CACHED, *_RESULTS),
    State.RUNNING: (State.CACHED, *_RESULTS),
    # retry and extend open an ended sweep again
    **dict.fromkeys((State.SUCCEEDED, State.CACHED, State.FAILED, State.CANCELLED), (State.PENDING,)),
}
CALL: Transitions = {
    State.PENDING: (State.QUEUED, State.SKIPPED, State.FAILED, State.CANCELLED),
    State.QUEUED: (State.RUNNING, State.PENDING, *_RESULTS),
    # back to pending: a lost worker, another attempt, or a more urgent call
    State.RUNNING: (State.PENDING, *_RESULTS),
}
TASK: Transitions = {
    State.PENDING: (State.SKIPPED, *_RESULTS),
    # a plan needs a task again that has no result, or whose artifact is lost
    **dict.fromkeys((State.SUCCEEDED, State.SKIPPED, State.FAILED, State.CANCELLED), (State.PENDING,)),
}
STAGE: Transitions = {
    State.PENDING: (State.SKIPPED, *_RESULTS),
    **dict.fromkeys((State.SUCCEEDED, State.CACHED, State.SKIPPED, State.FAILED, State.CANCELLED), (State.PENDING,)),
}
CELL: Transitions = {
    State.PENDING: (State.SKIPPED, *_RESULTS),
    # retry; a cell with rows never changes again
    **dict.fromkeys((State.SKIPPED, State.FAILED, State.CANCELLED), (State.PENDING,)),
}

EARLIER_LOGS = 8
"""The most logs of earlier calls that a call gets at a time, the latest."""
CHUNK_OF_PLAN = 5000
"""Rows of a plan that one transaction undoes: some ten milliseconds."""

log = structlog.get_logger()


def legal_before(table: Transitions, after: State) -> tuple[State, ...]:
    """The states from which a step to ``after`` is legal."""
    return tuple(state for state, following in table.items() if after in following)


# Statements that every call needs are built once: building one costs as much as running it.
_OF_CALL: sa.BindParameter[int] = sa.bindparam("of_call")
_OF_SWEEP: sa.BindParameter[str] = sa.bindparam("of_sweep")
_CALL = sa.select(calls).where(calls.c.id == _OF_CALL)
_START_SWEEP = (
    sweeps.update()
    .where(sweeps.c.id == _OF_SWEEP, one_of(sweeps.c.state, legal_before(SWEEP, State.RUNNING)))
    .values(state=State.RUNNING)
)
_WAITING = (
    sa.select(sa.func.count())
    .select_from(waits.join(tasks, tasks.c.key == waits.c.key))
    .where(waits.c.call == calls.c.id, task_states.NOT_ENDED)
    .scalar_subquery()
)
"""How many tasks a call waits for."""
_CREATE_CALL = calls.insert()
_CREATE_CALLS = calls.insert().returning(calls.c.id, sort_by_parameter_order=True)
_EARLIER_LOGS = (
    sa.select(earlier_logs.c.log)
    .where(earlier_logs.c.call.in_(sa.bindparam("of_calls", expanding=True)))
    .order_by(earlier_logs.c.id)
)
_LOGS = sa.select(calls.c.log).where(calls.c.id.in_(sa.bindparam("of_calls", expanding=True))).order_by(calls.c.id)
_SET_SIZE = (
    calls.update()
    .where(calls.c.id == _OF_CALL)
    .values(
        size=sa.bindparam("tasks"),
        **{name: sa.bindparam(f"new_{name}") for name in (*Work._fields, "scale")},
    )
)
_SET_BYTES = tasks.update().where(tasks.c.key == sa.bindparam("of_key")).values(bytes=sa.bindparam("size"))


# -- sweeps ----------------------------------------------------------------------------------------------------------


def create_sweep(
    connection: sa.Connection,
    sweep: str,
    *,
    name: str,
    experiment: str,
    priority: int,
    document: str,
    owner: str | None,
) -> None:
    """Write a pending sweep without cells, hidden until ``publish_sweep``; ``document`` is the JSON of its spec."""
    row = {"id": sweep, "name": name, "experiment": experiment, "state": State.PENDING, "priority": priority}
    row |= {"spec": document, "owner": owner, "planned": False, "cells": 0}
    row["resources"] = json.dumps(json.loads(document).get("resources") or {})
    connection.execute(sweeps.insert().values(**row, created_at=time.time()))


def publish_sweep(
    connection: sa.Connection, sweep: str, message: str, *, cells: int, request: tuple[str, str] | None
) -> None:
    """The plan of a new sweep is whole: show it, and let it run.

    Args:
        request: the idempotency key of the submission and the digest of its body.
    """
    shown = sweeps.update().where(sweeps.c.id == sweep)
    connection.execute(shown.values(planned=True, cells=cells, created_at=time.time()))
    if request is not None:
        connection.execute(idempotency.insert().values(key=request[0], body=request[1], sweep=sweep))
    counts.recount_backlog(connection, sweep)
    share_out(connection, sweep)
    _plan_changed(connection, sweep, "sweep.created", message)


def adopt_plan(
    connection: sa.Connection, plan: str, sweep: str, event: str, message: str, *, extensions: list[Any] | None = None
) -> None:
    """Move what a hidden plan has into the sweep, which may have ended: further cells, or cells that run again.

    Args:
        extensions: of the spec, if there is one more.
    """
    connection.execute(_opened(sweep).values(state=State.PENDING, finished_at=None, stopped=None))
    _replace_cells(connection, plan, sweep)
    _replace_stages(connection, plan, sweep)
    connection.execute(calls.update().where(calls.c.sweep == plan).values(sweep=sweep))
    for table in (needs, counts_table, backlog):
        connection.execute(table.delete().where(table.c.sweep == plan))
    connection.execute(sweeps.delete().where(sweeps.c.id == plan))
    counts.recount_sweep(connection, sweep)
    counts.recount_backlog(connection, sweep)
    values: dict[str, Any] = {"cells": sum(count_cells(connection, sweep).values())}
    if extensions is not None:
        values["extensions"] = json.dumps(extensions)
    connection.execute(sweeps.update().where(sweeps.c.id == sweep).values(**values))
    share_out(connection, sweep)
    _plan_changed(connection, sweep, event, message)


def _replace_cells(connection: sa.Connection, plan: str, sweep: str) -> None:
    again = sa.select(cells.c.idx).where(cells.c.sweep == plan)
    ended = cells.c.state.in_(legal_before(CELL, State.PENDING))
    connection.execute(cells.delete().where(cells.c.sweep == sweep, cells.c.idx.in_(again), ended))
    connection.execute(cells.update().where(cells.c.sweep == plan).values(sweep=sweep))


def _replace_stages(connection: sa.Connection, plan: str, sweep: str) -> None:
    """The plan's stages replace those of the sweep, but not one that is open, nor a result by another result."""
    its, own = stages.alias("its"), stages.alias("own")
    both = sa.select(own.c.key).join(its, its.c.key == own.c.key).where(own.c.sweep == sweep, its.c.sweep == plan)
    kept = both.where((own.c.state == State.PENDING) | (own.c.state.in_(RESULT) & its.c.state.in_(RESULT)))
    # Read first: a statement does not see its own changes in the same way in both databases.
    for piece in chunks(connection.scalars(kept).all()):
        connection.execute(stages.delete().where(stages.c.sweep == plan, stages.c.key.in_(piece)))
    for piece in chunks(connection.scalars(both).all()):
        connection.execute(stages.delete().where(stages.c.sweep == sweep, stages.c.key.in_(piece)))
    connection.execute(stages.update().where(stages.c.sweep == plan).values(sweep=sweep))


def _plan_changed(connection: sa.Connection, sweep: str, event: str, message: str) -> None:
    """Take over calls that less urgent sweeps share, and emit the event."""
    claim(connection, sweep)
    kinds = counts.count_all(connection, [sweep])[sweep].values()
    if any(State.RUNNING in by_state for by_state in kinds):  # for another sweep
        start_sweep(connection, sweep)
    emit_event(connection, sweep, event, message)


def discard_plan(connection: sa.Connection, plan: str, kept: Container[str]) -> bool:
    """Undo a part of a hidden plan, about ``CHUNK_OF_PLAN`` rows; True when nothing of it is left.

    A call that another sweep shares stays, and that sweep owns it.

    Args:
        kept: keys of tasks that the ledger had before; these stay, without a result.
    """
    owned = sa.select(calls.c.id, calls.c.size).where(calls.c.sweep == plan).order_by(calls.c.id).limit(CHUNK)
    rows = connection.execute(owned).all()
    room = CHUNK_OF_PLAN
    for row in rows:
        _discard_call(connection, plan, row.id, kept)
        room -= row.size
        if room <= 0:
            break
    if rows:
        return False
    for table, column in ((cells, cells.c.idx), (stages, stages.c.key)):
        some = connection.scalars(sa.select(column).where(table.c.sweep == plan).limit(CHUNK_OF_PLAN)).all()
        for piece in chunks(some):
            connection.execute(table.delete().where(table.c.sweep == plan, column.in_(piece)))
        if some:
            return False
    ended = sweeps.update().where(sweeps.c.id == plan)
    connection.execute(ended.values(state=State.CANCELLED))  # it needs nothing any more
    _cancel_unneeded(connection, calls_needed_by(plan), stopped=plan)
    for table in (needs, counts_table, backlog):
        connection.execute(table.delete().where(table.c.sweep == plan))
    connection.execute(sweeps.delete().where(sweeps.c.id == plan))
    return True


def _discard_call(connection: sa.Connection, plan: str, call: int, kept: Container[str]) -> None:
    others = sa.select(needs.c.sweep).where(needs.c.call == call, needs.c.sweep != plan).limit(1)
    other = connection.scalar(others)
    connection.execute(needs.delete().where(needs.c.call == call, needs.c.sweep == plan))
    if other is not None:
        connection.execute(calls.update().where(calls.c.id == call).values(sweep=other))
        claim(connection, other)
        return
    of_call = tasks.c.call == call
    keys = connection.scalars(sa.select(tasks.c.key).where(of_call)).all()
    for piece in chunks(key for key in keys if key in kept):
        forgotten = tasks.update().where(of_call, tasks.c.key.in_(piece))
        connection.execute(forgotten.values(state=State.CANCELLED, call=NEVER_RUN))
    connection.execute(tasks.delete().where(of_call))
    connection.execute(waits.delete().where(waits.c.call == call))
    connection.execute(earlier_logs.delete().where(earlier_logs.c.call == call))
    connection.execute(calls.delete().where(calls.c.id == call))


def start_sweep(connection: sa.Connection, sweep: str) -> None:
    """A call of the sweep runs; a sweep that has started stays as it is."""
    connection.execute(_START_SWEEP, {"of_sweep": sweep})


def pause_sweep(connection: sa.Connection, sweep: str) -> None:
    """Start no further call of the sweep, except those that other sweeps need."""
    connection.execute(sweeps.update().where(sweeps.c.id == sweep).values(paused=True))
    hand_over(connection, sweep)
    emit_event(connection, sweep, "sweep.paused", "paused: running calls finish, and no further call starts")


def resume_sweep(connection: sa.Connection, sweep: str) -> None:
    """Let a paused sweep continue."""
    connection.execute(sweeps.update().where(sweeps.c.id == sweep).values(paused=False))
    claim(connection, sweep)
    emit_event(connection, sweep, "sweep.resumed", "resumed")


def finish_sweep(connection: sa.Connection, sweep: str) -> State | None:
    """End a sweep without open cells; returns its final state, or None if it has open cells or has ended."""
    found = count_cells(connection, sweep)
    if not found.keys().isdisjoint(OPEN):
        return None
    if found.keys() & {State.FAILED, State.SKIPPED}:
        end = State.FAILED
    elif State.CANCELLED in found:
        end = State.CANCELLED
    else:
        end = State.CACHED if found.keys() == {State.CACHED} else State.SUCCEEDED
    if not _end_sweep(connection, sweep, end):
        return None
    hand_over(connection, sweep)
    shown = ", ".join(f"{n:,} {state}" for state, n in sorted(found.items()))
    _emit_end(connection, sweep, end, shown, found)
    return end


def stop_sweep(connection: sa.Connection, sweep: str, end: State, why: str) -> None:
    """End a sweep early: cancel its open cells, and the calls that no other open sweep needs."""
    if not _end_sweep(connection, sweep, end, why):
        return
    for table in (cells, stages):
        which = table.update().where(table.c.sweep == sweep, table.c.state == State.PENDING)
        connection.execute(which.values(state=State.CANCELLED))
    for kind, by_state in counts.count_all(connection, [sweep])[sweep].items():
        for state in by_state.keys() & set(OPEN):
            counts.add(connection, sweep, kind, State.CANCELLED, by_state[state])
            counts.add(connection, sweep, kind, state, -by_state[state])
    _cancel_unneeded(connection, calls_needed_by(sweep), stopped=sweep)
    for table in (needs, backlog):
        connection.execute(table.delete().where(table.c.sweep == sweep))
    hand_over(connection, sweep)
    _emit_end(connection, sweep, end, why, count_cells(connection, sweep))


def _opened(sweep: str) -> sa.Update:
    """An update of the sweep if it has ended."""
    return sweeps.update().where(sweeps.c.id == sweep, sweeps.c.state.in_(legal_before(SWEEP, State.PENDING)))


def _end_sweep(connection: sa.Connection, sweep: str, end: State, why: str | None = None) -> bool:
    opened = sweeps.update().where(sweeps.c.id == sweep, sweeps.c.state.in_(legal_before(SWEEP, end)))
    ended = opened.values(state=end, finished_at=time.time(), stopped=why, paused=False)
    return connection.execute(ended).rowcount == 1


def _emit_end(connection: sa.Connection, sweep: str, end: State, why: str, found: Mapping[State, int]) -> None:
    plain = {str(state): n for state, n in found.items()}
    emit_event(connection, sweep, TERMINAL_EVENT, f"{end}: {why}", state=end, counts=plain)
    log.info("sweep ended", sweep=sweep, state=str(end), why=why)


# -- calls -----------------------------------------------------------------------------------------------------------


def create_call(connection: sa.Connection, sweep: str, kind: str, size: int = 0, **history: Any) -> int:
    """Write a pending call of the sweep; returns its id. ``history`` has the columns of a call that was split."""
    row = {"sweep": sweep, "kind": kind, "state": State.PENDING, "size": size, **history}
    made = connection.execute(_CREATE_CALL, row)
    return int(made.inserted_primary_key[0])  # type: ignore[index]


def create_calls(
    connection: sa.Connection, sweep: str, planned: Sequence[tuple[str, int, int, Work | None]]
) -> list[int]:
    """Write pending calls of the sweep: kind, number of tasks, level and work; returns their ids."""
    rows = [
        {"sweep": sweep, "kind": kind, "state": State.PENDING, "size": size, "level": level, **_work_columns(work)}
        for kind, size, level, work in planned
    ]
    return list(connection.scalars(_CREATE_CALLS, rows)) if rows else []


def grow_calls(connection: sa.Connection, sizes: Mapping[int, tuple[int, Work | None]]) -> None:
    """Set how many tasks calls have, and their work."""
    if not sizes:
        return
    shared = counts.calls_in_backlogs(connection, sizes)  # by sweeps that were planned since
    for call in shared:
        counts.grow_backlog(connection, call, -1)
    rows = [{"of_call": c, "tasks": n, **_work_columns(work, "new_")} for c, (n, work) in sizes.items()]
    connection.execute(_SET_SIZE, rows)
    for call in shared:
        counts.grow_backlog(connection, call)


def _work_columns(work: Work | None, prefix: str = "") -> dict[str, Any]:
    values: Mapping[str, float | None] = dict.fromkeys(Work._fields) if work is None else work._asdict()
    return {
        f"{prefix}{name}": value for name, value in {**values, "scale": UNKNOWN if work is None else work.scale}.items()
    }


def add_waits(connection: sa.Connection, keys: Mapping[int, Sequence[str]]) -> None:
    """Let pending calls wait for these tasks too, of which some may have ended."""
    insert_tuples(connection, waits, ("call", "key"), [(call, key) for call, some in keys.items() for key in some])
    for piece in chunks(call for call, some in keys.items() if some):
        connection.execute(calls.update().where(calls.c.id.in_(piece)).values(waiting=_WAITING))


def queue_call(connection: sa.Connection, call: int) -> bool:
    """The call goes to the runner; False if it is no longer pending."""
    return _move(connection, call, State.QUEUED) is not None


def start_call(connection: sa.Connection, call: int, host: str, message: str) -> None:
    """A process computes the call."""
    if _move(connection, call, State.RUNNING, host=host) is None:
        return
    for sweep in sweeps_needing(connection, call):
        start_sweep(connection, sweep)
        emit_event(connection, sweep, "call.started", message, call=call)


def requeue_call(
    connection: sa.Connection, call: int, event: str | None = None, message: str = "", **columns: Any
) -> bool:
    """The call waits for its next attempt; False if it has ended.

    Args:
        event: emitted with the message to every sweep that needs the call; not for a call that was only taken back.
        columns: what the attempt changed: ``attempt``, ``not_before``, ``crashes``, ``losses``, ``error`` ….
    """
    if _move(connection, call, State.PENDING, **columns) is None:
        return False
    if event is not None:
        extra = {"attempt": columns["attempt"]} if event == "call.retried" else {}
        emit_to_all(connection, sweeps_needing(connection, call), event, message, call=call, **extra)
    return True


def delay_call(connection: sa.Connection, call: int, not_before: float) -> None:
    """Start the next attempt of a pending call no earlier than this (Unix seconds)."""
    connection.execute(calls.update().where(calls.c.id == call).values(not_before=not_before))


def split_call(connection: sa.Connection, call: int, pieces: Sequence[Sequence[str]]) -> list[int]:
    """Move each piece of a pending call's open tasks to a new call with the same history; returns the new calls."""
    row = connection.execute(_CALL, {"of_call": call}).one()
    names = ("sweep", "kind", "attempt", "crashes", "losses", "waiting", "not_before", "level")
    history = {name: row._mapping[name] for name in names}
    whole = None if row.launches is None else Work(row.launches, row.flops, row.elements)
    counts.grow_backlog(connection, call, -1)
    made = []
    for piece in pieces:
        part = None if whole is None else whole.times(len(piece) / max(row.size, 1))
        number = create_call(connection, size=len(piece), **history, **_work_columns(part))
        for keys in chunks(piece):
            for table in (tasks, stages, cells):
                moved = table.update().where(table.c.call == call, table.c.state == State.PENDING)
                connection.execute(moved.where(table.c.key.in_(keys)).values(call=number))
        awaited = sa.select(sa.literal(number), waits.c.key).where(waits.c.call == call)
        connection.execute(waits.insert().from_select(["call", "key"], awaited))
        made.append(number)
    keep_logs(connection, {number: [call] for number in made})
    insert_tuples(connection, earlier_logs, ("call", "log"), [(call, row.log)] if row.log else [])
    left = sa.select(sa.func.count()).where(tasks.c.call == call, tasks.c.state == State.PENDING)
    smaller = calls.update().where(calls.c.id == call)
    connection.execute(smaller.values(size=left.scalar_subquery(), log=new_log()))
    if whole is not None:
        kept = whole.times(max(0.0, 1 - sum(map(len, pieces)) / max(row.size, 1)))
        connection.execute(calls.update().where(calls.c.id == call).values(**_work_columns(kept)))
    for number in (call, *made):
        counts.recount_call(connection, number)
        counts.grow_backlog(connection, number)
    return made


def finish_call(
    connection: sa.Connection,
    call: int,
    how: str,
    *,
    seconds: float | None = None,
    host: str | None = None,
    device: str | None = None,
    sizes: Mapping[str, int] | None = None,
) -> list[str]:
    """The call's results are durable: it and its open tasks succeeded; returns the open sweeps that needed it.

    Args:
        how: the end of the message of the event ``call.finished``.
        seconds, host, device: of the attempt; None where a restart found the rows written.
        sizes: bytes of the artifacts by key.
    """
    columns = {} if seconds is None else {"seconds": seconds, "host": host, "error": None}
    row = _move(connection, call, State.SUCCEEDED, **columns)
    if row is None:
        return []
    if sizes:
        connection.execute(_SET_BYTES, [{"of_key": key, "size": size} for key, size in sizes.items()])
    if seconds is not None and device is not None and row.attempt == 1:  # another may have continued the first
        work = None if row.launches is None else Work(row.launches, row.flops, row.elements)
        made = sizes or {}
        past = PastCall(row.kind, device, work, row.size, seconds, len(made), sum(made.values()), time.time())
        record_call(connection, past)
    return _end_tasks(connection, call, State.SUCCEEDED, "call.finished", f"{row.size:,} {row.kind} done{how}")


def mark_diverged(connection: sa.Connection, keys: Iterable[str]) -> None:
    """These tasks measured numbers that are not finite."""
    for piece in chunks(keys):
        connection.execute(tasks.update().where(tasks.c.key.in_(piece)).values(diverged=True))


def fail_call(connection: sa.Connection, call: int, message: str, **columns: Any) -> list[str] | None:
    """The call and its open tasks failed; returns the open sweeps that needed it, None if it had ended before."""
    if _move(connection, call, State.FAILED, **columns) is None:
        return None
    return _end_tasks(connection, call, State.FAILED, "call.failed", message)


def skip_call(connection: sa.Connection, call: int) -> None:
    """All tasks of the call were skipped, so the call is."""
    _move(connection, call, State.SKIPPED)


def close_call(connection: sa.Connection, call: int) -> None:
    """All tasks of the call have succeeded, though its process failed: the call succeeded."""
    _move(connection, call, State.SUCCEEDED)


def cancel_call(connection: sa.Connection, call: int) -> None:
    """No open sweep needs the call: cancel it and its open tasks."""
    if _move(connection, call, State.CANCELLED) is not None:
        _end_tasks(connection, call, State.CANCELLED)


def cancel_calls_of_ended(connection: sa.Connection) -> None:
    """Cancel open calls of sweeps that have ended and that no open sweep needs."""
    ended = sa.select(sweeps.c.id).where(sweeps.c.state.in_(FINISHED))
    _cancel_unneeded(connection, sa.select(calls.c.id).where(calls.c.state.in_(OPEN), calls.c.sweep.in_(ended)))


def _cancel_unneeded(connection: sa.Connection, candidates: sa.Select[int], stopped: str | None = None) -> None:
    """Cancel those of the candidates, and their open tasks, that no open sweep needs.

    A call whose rows are being written is not cancelled: its rows will be in the table, and are not computed twice.

    Args:
        stopped: a sweep whose counts are right already.
    """
    opened = sa.select(sweeps.c.id).where(sweeps.c.state.in_(OPEN))
    wanted = sa.select(sa.literal(1)).where(needs.c.call == calls.c.id, needs.c.sweep.in_(opened)).exists()
    legal = calls.c.state.in_(legal_before(CALL, State.CANCELLED))
    unneeded = sa.and_(legal, calls.c.batch.is_(None), calls.c.id.in_(candidates), ~wanted)
    ids = list(connection.scalars(sa.select(calls.c.id).where(unneeded)))
    for piece in chunks(ids):
        columns = (needs.c.sweep, needs.c.kind, calls.c.state)  # stages that sweeps have left open when they ended
        left = sa.select(*columns, sa.func.sum(needs.c.open).label("n")).join(calls, calls.c.id == needs.c.call)
        left = left.where(calls.c.id.in_(piece), needs.c.sweep.is_distinct_from(stopped)).group_by(*columns)
        for sweep, kind, state, n in connection.execute(left).all():
            counts.add(connection, sweep, kind, State.CANCELLED, int(n))
            counts.add(connection, sweep, kind, state, -int(n))
        connection.execute(calls.update().where(calls.c.id.in_(piece)).values(state=State.CANCELLED))
        for table in (stages, cells):
            pending = table.update().where(table.c.call.in_(piece), table.c.state == State.PENDING)
            connection.execute(pending.values(state=State.CANCELLED))
        connection.execute(needs.delete().where(needs.c.call.in_(piece)))
        waited = sa.select(waits.c.call).join(tasks, tasks.c.key == waits.c.key).where(tasks.c.call.in_(piece))
        again = calls.update().where(calls.c.state == State.PENDING, calls.c.id.in_(waited))
        connection.execute(again.values(waiting=_WAITING))


def _move(connection: sa.Connection, call: int, after: State, **columns: Any) -> sa.Row[Any] | None:
    """Move a call if that is legal; returns its kind, size, attempt and work, or None."""
    counts.shift(connection, call, legal_before(CALL, after), after)
    given = {f"new_{name}": value for name, value in columns.items()}
    return connection.execute(_set_state(after, tuple(sorted(columns))), {"of_call": call, **given}).one_or_none()


@functools.cache
def _set_state(after: State, names: tuple[str, ...]) -> sa.UpdateBase:
    values: dict[str, Any] = {name: sa.bindparam(f"new_{name}") for name in names}
    if after is State.PENDING:  # what it waited for may be computed again by now
        values["waiting"] = _WAITING
    legal = one_of(calls.c.state, legal_before(CALL, after))
    moved = calls.update().where(calls.c.id == _OF_CALL, legal).values(state=after, **values)
    return moved.returning(*(calls.c[name] for name in ("kind", "size", "attempt", *Work._fields)))


# -- tasks, stages and cells -----------------------------------------------------------------------------------------


def create_tasks(
    connection: sa.Connection, rows: Sequence[tuple[str, str, int, str, str]], again: Iterable[str] = ()
) -> set[str]:
    """Write pending tasks: key, kind, call, and the two texts of ``packed_tasks``.

    Those with a key in ``again`` may exist, and have ended.

    Returns:
        the keys of those that existed.
    """
    ended = task_states.ended_as(legal_before(TASK, State.PENDING))
    replaced: dict[str, int] = {}
    for piece in chunks(again):
        gone = tasks.delete().where(tasks.c.key.in_(piece), ended).returning(tasks.c.key, tasks.c.call)
        replaced.update((row.key, row.call) for row in connection.execute(gone))
    earlier: dict[int, set[int]] = {}
    for key, _, call, *_ in rows if replaced else ():
        if key in replaced:
            earlier.setdefault(call, set()).add(replaced[key])
    keep_logs(connection, earlier)
    names = ("key", "kind", "call", "params", "shared", "state", "diverged")
    insert_tuples(connection, tasks, names, [(*row, State.PENDING, False) for row in rows])
    for piece in chunks(replaced):  # pending calls that need these tasks wait for them again
        count_waits(connection, piece)
    return set(replaced)


def keep_logs(connection: sa.Connection, earlier: Mapping[int, Iterable[int]]) -> None:
    """The logs of earlier calls belong to the tasks of these calls too, which had other calls before.

    Args:
        earlier: by call, those that had some of its tasks.
    """
    rows: list[tuple[int, str]] = []
    for call, before in earlier.items():
        known = list(connection.scalars(_EARLIER_LOGS, {"of_calls": [call]}))
        found: list[str] = []
        for piece in chunks(sorted(set(before) - {NEVER_RUN, call})):
            found += connection.scalars(_EARLIER_LOGS, {"of_calls": piece})
            found += connection.scalars(_LOGS, {"of_calls": piece})
        latest = list(dict.fromkeys(log for log in found if log and log not in known))[-EARLIER_LOGS:]
        rows += [(call, log) for log in latest]
    insert_tuples(connection, earlier_logs, ("call", "log"), rows)


def remember_tasks(connection: sa.Connection, rows: Sequence[tuple[str, str, str, str, State]]) -> None:
    """Write tasks that no call of this ledger computes: key, kind, the two texts of ``packed_tasks``, state.

    They are in the artifact store, or nothing needs them now. When an artifact is lost later, it can be computed again.
    """
    names = ("key", "kind", "params", "shared", "state", "call", "diverged")
    insert_tuples(connection, tasks, names, [(*row, NEVER_RUN, False) for row in rows])


def create_stages(connection: sa.Connection, sweep: str, rows: Sequence[tuple[str, int | None, State]]) -> None:
    """Write stages of the sweep: key, call, state."""
    insert_tuples(connection, stages, ("sweep", "key", "call", "state"), [(sweep, *row) for row in rows])


def create_cells(connection: sa.Connection, sweep: str, rows: Sequence[tuple[int, str, int | None, State]]) -> None:
    """Write cells of the sweep: index, key, call, state."""
    insert_tuples(connection, cells, ("sweep", "idx", "key", "call", "state"), [(sweep, *row) for row in rows])


def count_rows(
    connection: sa.Connection,
    sweep: str,
    shown: Mapping[tuple[str, str], int],
    opened: Mapping[tuple[str, int], int],
) -> None:
    """Count new cells and stages of a hidden sweep: by kind and shown state, and the open ones by kind and call."""
    counts.add_many(connection, sweep, shown)
    counts.need_many(connection, sweep, opened)


def keep_tasks(connection: sa.Connection, call: int, keys: Sequence[str]) -> list[str]:
    """These tasks succeeded though their call failed; returns the open sweeps that need the call."""
    affected = sweeps_needing(connection, call)
    _end_some(connection, call, State.SUCCEEDED, keys)
    return affected


def skip_tasks(connection: sa.Connection, call: int, keys: Sequence[str], blame: str, message: str) -> list[str]:
    """These tasks need one that has no result, ``blame``; returns the open sweeps that need the call."""
    affected = sweeps_needing(connection, call)
    _end_some(connection, call, State.SKIPPED, keys, blame)
    emit_to_all(connection, affected, "call.skipped", message, call=call)
    return affected


def recompute_task(connection: sa.Connection, key: str, kind: str, needing: Sequence[str]) -> int:
    """The artifact of an ended task is lost: a new call computes it again; returns the call.

    Open sweeps with this stage wait for it, and so do the sweeps in ``needing``; the first of them owns the call.
    """
    call = create_call(connection, needing[0], kind, size=1, **_past_work(connection, key))
    before = connection.scalars(sa.select(tasks.c.call).where(tasks.c.key == key)).one()
    keep_logs(connection, {call: [before]})
    legal = task_states.ended_as(legal_before(TASK, State.PENDING))
    connection.execute(tasks.update().where(tasks.c.key == key, legal).values(state=State.PENDING, call=call))
    opened = sa.select(sweeps.c.id).where(sweeps.c.state.in_(OPEN))
    which = sa.and_(
        stages.c.key == key, stages.c.sweep.in_(opened), stages.c.state.in_(legal_before(STAGE, State.PENDING))
    )
    for row in connection.execute(sa.select(stages.c.sweep, stages.c.state).where(which)).all():
        counts.add(connection, row.sweep, kind, row.state, -1)
        counts.add(connection, row.sweep, kind, State.PENDING, 1)
        counts.need(connection, call, row.sweep, kind, 1)
    connection.execute(stages.update().where(which).values(state=State.PENDING, call=call))
    counts.grow_backlog(connection, call)
    need_stage(connection, key, kind, call, needing)
    return call


def _past_work(connection: sa.Connection, key: str) -> dict[str, Any]:
    """The level of the call that computed a task once, and the task's part of its work."""
    query = sa.select(calls).join(tasks, tasks.c.call == calls.c.id).where(tasks.c.key == key)
    row = connection.execute(query).one_or_none()
    if row is None or row.launches is None:
        return _work_columns(None)
    work = Work(row.launches, row.flops, row.elements).times(1 / max(row.size, 1))
    return {"level": row.level, **_work_columns(work)}


def need_stage(connection: sa.Connection, key: str, kind: str, call: int, needing: Sequence[str]) -> None:
    """Make this open task a stage of the sweeps that do not have it."""
    have = set(connection.scalars(sa.select(stages.c.sweep).where(stages.c.key == key)))
    new = [sweep for sweep in needing if sweep not in have]
    if not new:
        return
    counts.grow_backlog(connection, call, -1)
    rows = [{"sweep": sweep, "key": key, "call": call, "state": State.PENDING} for sweep in new]
    insert_many(connection, stages, rows)
    state = connection.execute(_CALL, {"of_call": call}).one().state
    for sweep in new:
        counts.add(connection, sweep, kind, state, 1)
        counts.need(connection, call, sweep, kind, 1)
    counts.grow_backlog(connection, call)


def await_tasks(connection: sa.Connection, call: int, keys: Iterable[str]) -> None:
    """A pending call waits for these tasks too."""
    waited = set(connection.scalars(sa.select(waits.c.key).where(waits.c.call == call)))
    insert_many(connection, waits, [{"call": call, "key": key} for key in keys if key not in waited])


def count_waits(connection: sa.Connection, keys: Sequence[str]) -> None:
    """Update ``waiting`` of the pending calls that need these tasks."""
    connection.execute(_recount(of_call=False), {"keys": keys})


def _end_tasks(
    connection: sa.Connection, call: int, after: State, event: str | None = None, message: str = ""
) -> list[str]:
    """End all open stages and cells of a call that has ended; returns the open sweeps that needed it."""
    affected = sweeps_needing(connection, call)
    ended = (stages, cells) if counts.has_stages(connection, call) else (cells,)
    for table in ended:
        connection.execute(_end(table, some=False), {"of_call": call, "after": after})
    counts.end_call(connection, call)
    if stages in ended:  # no call waits for cells
        connection.execute(_recount(of_call=True), {"of_call": call})
    if event is not None:
        emit_to_all(connection, affected, event, message, call=call)
    return affected


def _end_some(
    connection: sa.Connection, call: int, after: State, keys: Sequence[str], blame: str | None = None
) -> None:
    """End these open tasks of a call that continues, with their stages and cells."""
    row = connection.execute(_CALL, {"of_call": call}).one()
    for piece in chunks(keys):
        for table, kind in ((cells, CELLS), (stages, row.kind)):
            ending = sa.and_(table.c.call == call, table.c.state == State.PENDING, table.c.key.in_(piece))
            grouped = sa.select(table.c.sweep, sa.func.count()).where(ending).group_by(table.c.sweep)
            for sweep, n in connection.execute(grouped).all():
                counts.add(connection, sweep, kind, row.state, -n)
                counts.add(connection, sweep, kind, after, n)
                counts.need(connection, call, sweep, kind, -n)
        for table in (tasks, stages, cells):
            given = {"of_call": call, "after": after, "keys": piece, **_blamed(table, blame)}
            connection.execute(_end(table, some=True), given)
        count_waits(connection, piece)
    counts.leave_call(connection, call)


@functools.cache
def _end(table: sa.Table, *, some: bool) -> sa.Update:
    query = table.update().where(table.c.call == _OF_CALL, table.c.state == State.PENDING)
    if some:
        query = query.where(table.c.key.in_(sa.bindparam("keys", expanding=True)))
    query = query.values(state=sa.bindparam("after"))
    return query.values(blame=sa.bindparam("blamed")) if table is tasks else query


def _blamed(table: sa.Table, blame: str | None) -> dict[str, str | None]:
    return {"blamed": blame} if table is tasks else {}


@functools.cache
def _recount(*, of_call: bool) -> sa.Update:
    all_of_call = sa.select(tasks.c.key).where(tasks.c.call == _OF_CALL)
    which = waits.c.key.in_(all_of_call if of_call else sa.bindparam("keys", expanding=True))
    waiting = sa.select(waits.c.call).where(which)
    return calls.update().where(calls.c.state == State.PENDING, calls.c.id.in_(waiting)).values(waiting=_WAITING)
