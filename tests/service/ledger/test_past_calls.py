"""The last calls of each kind and device."""

from __future__ import annotations

import sqlalchemy as sa
from ledger_rows import add_call, add_task

from creditgrid.core.states import State
from creditgrid.core.work import Work
from creditgrid.service.ledger import tables, transitions
from creditgrid.service.ledger.ledger import Ledger
from creditgrid.service.ledger.past_calls import (
    KEPT,
    PastCall,
    newest_call,
    read_calls,
    record_call,
)


def past(seconds: float, kind: str = "k", device: str = "cpu") -> PastCall:
    return PastCall(kind, device, Work(1, 2, 3), 4, seconds, 0, 0, seconds)


def test_the_last_calls_of_each_kind_and_device_are_kept(ledger: Ledger) -> None:
    with ledger.write() as connection:
        for n in range(KEPT + 30):
            record_call(connection, past(float(n)))
        record_call(connection, past(5.0, device="cuda"))
        record_call(connection, past(6.0, kind="other"))
        found = read_calls(connection)
        assert [call.seconds for call in found if call.kind == "k" and call.device == "cpu"] == list(
            range(30, KEPT + 30)
        )
        assert len(found) == KEPT + 2
        assert found[-1].work == Work(1, 2, 3)


def test_a_call_that_succeeds_at_once_is_kept_and_others_are_not(ledger: Ledger) -> None:
    with ledger.write() as connection:
        seen = newest_call(connection)
        call = add_call(connection, State.RUNNING, size=3)
        for key in ("a", "b"):
            add_task(connection, key, call)
        transitions.finish_call(
            connection, call, "text", seconds=6.0, host="h", device="cpu", sizes={"a": 2**40, "b": 10}
        )
        assert connection.scalar(sa.select(tables.tasks.c.bytes).where(tables.tasks.c.key == "a")) == 2**40
        failed = add_call(connection, State.RUNNING, size=5)
        transitions.fail_call(connection, failed, "text")
        found = add_call(connection, State.RUNNING, size=5)
        transitions.finish_call(connection, found, "its rows were written when the service ended")
        again = add_call(connection, State.RUNNING, size=5, attempt=2)
        transitions.finish_call(connection, again, "text", seconds=1.0, host="h", device="cpu")
        (kept,) = read_calls(connection)
        assert kept[:7] == ("k", "cpu", None, 3, 6.0, 2, 2**40 + 10)
        assert newest_call(connection) != seen
