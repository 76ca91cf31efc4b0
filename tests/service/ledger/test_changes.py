"""What a process knows about its own changes of the ledger."""

from __future__ import annotations

from pathlib import Path

import pytest

from creditgrid.service.ledger import changes
from creditgrid.service.ledger.changes import Changes
from creditgrid.service.ledger.events import emit_event
from creditgrid.service.ledger.ledger import Ledger


def test_transactions_are_numbered_and_note_the_sweeps_with_events(tmp_path: Path) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    start = ledger.changes.version
    with ledger.write() as connection:
        emit_event(connection, "a", "call.started", "one")
        emit_event(connection, "b", "sweep.paused", "two")
        emit_event(connection, "b", "call.started", "three")
        assert ledger.changes.version == start, "nothing is committed"
        assert ledger.changes.of_events("a") == 0
    known = ledger.changes
    assert known.version == start + 1
    assert (known.of_sweep("a"), known.of_events("a")) == (0, start + 1)
    assert (known.of_sweep("b"), known.of_events("b")) == (start + 1, start + 1)
    assert known.of_any_sweep == start + 1
    with ledger.read():
        pass
    assert known.version == start + 1
    with ledger.write() as connection:
        emit_event(connection, "b", "call.finished", "four")
    assert (known.of_sweep("b"), known.of_events("b"), known.of_any_sweep) == (start + 1, start + 2, start + 1)
    ledger.close()


def test_a_transaction_that_fails_counts_as_a_change(tmp_path: Path) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    start = ledger.changes.version

    def fail() -> None:
        with ledger.write() as connection:
            emit_event(connection, "a", "sweep.paused", "one")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert ledger.changes.of_sweep("a") == ledger.changes.version == start + 1
    ledger.close()


def test_a_forgotten_sweep_counts_as_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "REMEMBERED", 2)
    known = Changes()
    for sweep in "abcd":
        known.ended({sweep: True})
    assert [known.of_sweep(sweep) for sweep in "abcd"] == [2, 2, 3, 4]
    assert [known.of_events(sweep) for sweep in "abcd"] == [2, 2, 3, 4]
    known.ended({"a": False})  # a step of a call: the sweep itself changed at 3 at the latest
    assert (known.of_sweep("a"), known.of_events("a")) == (2, 5)
    assert known.of_sweep("b") == 3
