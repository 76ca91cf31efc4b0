"""Which sweeps and calls are ready, and which sweep owns a call."""

from __future__ import annotations

import sqlalchemy as sa
from ledger_rows import add_call, add_cell, add_stage, add_sweep, add_task

from creditgrid.core.states import FINISHED, State
from creditgrid.service.ledger import counts, tables
from creditgrid.service.ledger.ledger import Ledger
from creditgrid.service.ledger.ownership import claim, hand_over
from creditgrid.service.ledger.queries import LONGEST_PAUSE_S, ready_calls, ready_sweeps


def test_ready_sweeps_are_ordered_by_priority_then_age(ledger: Ledger) -> None:
    with ledger.write() as connection:
        for sweep, priority in {"first": 0, "second": 0, "urgent": 5, "idle": -5, "paused": 9, "nothing": 9}.items():
            add_sweep(connection, sweep, priority=priority, paused=sweep == "paused")
            add_call(connection, State.SUCCEEDED if sweep == "nothing" else State.PENDING, sweep=sweep)
        order = [("urgent", 5, None), ("first", 0, None), ("second", 0, None), ("idle", -5, None)]
        assert list(ready_sweeps(connection, 100.0)) == order
        for state in FINISHED:
            connection.execute(tables.sweeps.update().where(tables.sweeps.c.id == "urgent").values(state=state))
            assert list(ready_sweeps(connection, 100.0)) == order[1:]


def test_ready_calls_are_pending_and_due(ledger: Ledger) -> None:
    with ledger.write() as connection:
        add_sweep(connection, "s")
        add_sweep(connection, "another")
        first, second = add_call(connection), add_call(connection)
        later = add_call(connection, not_before=2000.0)
        add_call(connection, waiting=1)
        add_call(connection, sweep="another")
        for state in State:
            if state is not State.PENDING:
                add_call(connection, state)

        def ready(now: float, limit: int = 50) -> list[int]:
            return [row.id for row in ready_calls(connection, "s", now, limit)]

        assert ready(1500.0) == [first, second]
        assert ready(1500.0, 1) == [first]
        assert ready(2000.0) == [first, second, later]
        # After the clock was set back, no call waits longer than the longest pause.
        assert ready(2000.0 - LONGEST_PAUSE_S - 1.0) == [first, second, later]


def test_the_most_urgent_sweep_that_is_not_paused_owns_a_shared_call(ledger: Ledger) -> None:
    with ledger.write() as connection:
        add_sweep(connection, "old", priority=0)
        add_sweep(connection, "new", priority=0)
        add_sweep(connection, "urgent", priority=3)
        shared, running = add_call(connection, sweep="new"), add_call(connection, State.RUNNING, sweep="new")
        ended = add_call(connection, State.SUCCEEDED, sweep="new")
        alone = add_call(connection, sweep="new")
        for key, call in (("a", shared), ("b", running), ("c", alone), ("d", ended)):
            add_task(connection, key, call)
        add_cell(connection, "new", 1, "c", alone)
        for sweep in ("old", "new", "urgent"):
            add_cell(connection, sweep, 0, "a", shared)
            add_stage(connection, sweep, "b", running)
            add_stage(connection, sweep, "d", ended, State.SUCCEEDED)
            counts.recount_sweep(connection, sweep)

        def owners() -> list[str]:
            return list(connection.scalars(sa.select(tables.calls.c.sweep).order_by(tables.calls.c.id)))

        claim(connection, "new")
        assert owners() == ["new", "new", "new", "new"]
        claim(connection, "old")  # as urgent, and older
        assert owners() == ["old", "old", "new", "new"]
        claim(connection, "new")
        assert owners() == ["old", "old", "new", "new"]
        claim(connection, "urgent")
        assert owners() == ["urgent", "urgent", "new", "new"]
        connection.execute(tables.sweeps.update().where(tables.sweeps.c.id == "urgent").values(paused=True))
        hand_over(connection, "urgent")
        assert owners() == ["old", "old", "new", "new"]
        connection.execute(tables.sweeps.update().where(tables.sweeps.c.id == "old").values(state=State.CANCELLED))
        hand_over(connection, "old")
        assert owners() == ["new", "new", "new", "new"]
