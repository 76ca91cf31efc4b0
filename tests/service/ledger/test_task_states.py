"""A task that is pending has the state of its call; one that differs has its own."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from ledger_rows import add_call, add_task

from creditgrid.core.states import FINISHED, OPEN, State
from creditgrid.service.ledger import tables, transitions
from creditgrid.service.ledger.ledger import Ledger
from creditgrid.service.ledger.queries import task_row, task_states
from creditgrid.service.ledger.tables import NEVER_RUN
from creditgrid.service.ledger.task_states import NOT_ENDED, STATE, ended_as


@pytest.mark.parametrize("own", [State.PENDING, *FINISHED])
def test_the_state_of_a_task(ledger: Ledger, own: State) -> None:
    for of_call in State:
        state = of_call if own is State.PENDING else own
        key = f"{own} {of_call}"
        with ledger.write() as connection:
            add_task(connection, key, add_call(connection, of_call), own)
            mine = tables.tasks.c.key == key
            settled = State.PENDING if state in OPEN else state
            assert connection.scalar(sa.select(STATE).where(mine)) == settled
            assert connection.scalar(sa.select(NOT_ENDED).where(mine)) == (state in OPEN)
            assert task_states(connection, [key])[key][0] is settled
            row = task_row(connection, key)
            assert row is not None
            assert (row.key, row.state) == (key, settled)
            for wanted in FINISHED:
                assert connection.scalar(sa.select(ended_as([wanted])).where(mine)) == (state is wanted)


def test_a_task_that_no_call_computes_has_its_own_state(ledger: Ledger) -> None:
    with ledger.write() as connection:
        add_task(connection, "a", NEVER_RUN, State.CANCELLED)
        assert task_states(connection, ["a"]) == {"a": (State.CANCELLED, NEVER_RUN)}


@pytest.mark.parametrize("end", ["finish_call", "fail_call", "cancel_call"])
def test_the_end_of_a_call_writes_no_row_of_its_tasks(ledger: Ledger, end: str) -> None:
    with ledger.write() as connection:
        call = add_call(connection, State.QUEUED)
        add_task(connection, "a", call)
        getattr(transitions, end)(connection, call, *(["text"] if end != "cancel_call" else []))
        assert connection.scalar(sa.select(tables.tasks.c.state)) == State.PENDING
        assert not connection.scalar(sa.select(NOT_ENDED))
