"""The counts that transitions keep equal a count of the cells and stages."""

from __future__ import annotations

from collections import Counter

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ledger_rows import add_call, add_cell, add_stage, add_sweep, add_task

from creditgrid.core.states import OPEN, State
from creditgrid.service.ledger import counts, tables
from creditgrid.service.ledger.ledger import Ledger
from creditgrid.service.ledger.tables import CELLS

STATES = st.sampled_from(State)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.sampled_from(OPEN), min_size=1, max_size=4),
    st.lists(st.tuples(st.none() | st.integers(0, 3), STATES), max_size=30),
)
def test_counts_add_up_to_the_cells(ledger: Ledger, calls: list[State], cells: list[tuple[int | None, State]]) -> None:
    with ledger.write() as connection, connection.begin_nested() as undone:
        add_sweep(connection, "s")
        wanted: Counter[State] = Counter()
        needed: Counter[int] = Counter()
        ids = [add_call(connection, state) for state in calls]
        for idx, (which, state) in enumerate(cells):
            call = None if which is None else which % len(calls)
            add_cell(connection, "s", idx, f"k{idx}", None if call is None else ids[call], state)
            # Only a call is queued or running; the row of a cell is pending until the cell has ended.
            wanted[calls[call] if state is State.PENDING and call is not None else state] += 1
            if state is State.PENDING and call is not None:
                needed[ids[call]] += 1
        add_cell(connection, "another", 0, "k", None)
        counts.recount_sweep(connection, "s")
        found = counts.count_cells(connection, "s")
        assert sum(found.values()) == len(cells)
        assert found == dict(wanted)
        assert set(connection.scalars(counts.calls_needed_by("s"))) == needed.keys()
        assert counts.open_needs(connection, ["s"], ids).get("s", {}) == {
            call: {CELLS: n} for call, n in needed.items()
        }
        undone.rollback()


def test_only_open_sweeps_need_a_call(ledger: Ledger) -> None:
    with ledger.write() as connection:
        call = add_call(connection)
        for sweep in ("by cell", "by stage", "not"):
            add_sweep(connection, sweep)
        add_task(connection, "a", call)
        add_cell(connection, "by cell", 0, "a", call)
        add_cell(connection, "by cell", 1, "b", call)
        add_stage(connection, "by stage", "a", call)
        for sweep in ("by cell", "by stage", "not"):
            counts.recount_sweep(connection, sweep)
        for state in State:
            connection.execute(tables.sweeps.update().values(state=state))
            needing = counts.sweeps_needing(connection, call)
            assert needing == (["by cell", "by stage"] if state in OPEN else [])


def test_cells_of_all_open_sweeps_are_counted(ledger: Ledger) -> None:
    with ledger.write() as connection:
        for sweep, state in (("one", State.RUNNING), ("two", State.PENDING), ("ended", State.FAILED)):
            add_sweep(connection, sweep, state)
            add_cell(connection, sweep, 0, "a", None, State.FAILED)
            add_cell(connection, sweep, 1, "b", add_call(connection, State.RUNNING))
            counts.recount_sweep(connection, sweep)
        assert counts.count_open(connection) == {State.FAILED: 2, State.RUNNING: 2}
