"""The cells of a sweep and the tasks that they depend on."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from sweeping import House, both_databases, pages

from creditgrid.core.states import State


def test_stages_are_listed_with_what_they_cost(house: House) -> None:
    sweep = house.submit(axes={"x": [1]}, include=[{"x": 1, "base": "ok"}, {"x": 2, "base": "raise"}])
    house.drain()
    found = pages(lambda after: house.tasks.page(sweep, None, after, 1), "")
    stages = [stage for page in found for stage in page]
    assert [stage.key for stage in stages] == sorted(stage.key for stage in stages)
    good, bad = sorted(stages, key=lambda stage: str(stage.params["base"]))
    assert (good.kind, good.state, good.attempt, good.error) == ("noop_base", State.SUCCEEDED, 1, None)
    assert good.bytes == len(house.store.read(good.key))
    assert good.seconds is not None
    assert (bad.state, bad.bytes) == (State.FAILED, None)
    assert bad.error == "ValueError: the base was asked to raise"
    assert [stage.key for stage in house.tasks.page(sweep, State.FAILED, "", 9)[0]] == [bad.key]


def test_cells_are_listed_in_the_order_of_the_grid_in_pages(house: House) -> None:
    sweep = house.submit(axes={"x": [5, 3, 4], "y": [0.5, 1.5]}, fixed={"base": "ok"})
    found = pages(lambda after: house.cells.page(sweep, None, after, 4), -1)
    assert [len(page) for page in found] == [4, 2]
    cells = [cell for page in found for cell in page]
    assert [cell.index for cell in cells] == list(range(6))
    assert [(cell.params["x"], cell.params["y"]) for cell in cells] == [(x, y) for x in (5, 3, 4) for y in (0.5, 1.5)]
    assert len({cell.key for cell in cells}) == 6
    assert {tuple(cell.parents) for cell in cells} == {("base",)}
    assert house.sql_tables.cell_index(sweep).to_pylist() == [{"idx": cell.index, "cell": cell.key} for cell in cells]
    house.drain()


def test_cells_show_the_state_of_their_call_while_it_is_open(house: House) -> None:
    sweep = house.submit(axes={"group": [0, 1, 2], "x": [1]})

    def states() -> list[State]:
        return [cell.state for cell in house.cells.page(sweep, None, -1, 9)[0]]

    assert states() == [State.PENDING] * 3
    house.step()
    one, two, _ = house.runner.calls
    assert states() == [State.QUEUED] * 3
    house.runner.start_call(one)
    house.runner.start_call(two)
    house.step()
    house.runner.fail(two, error="ValueError: so\nand so")
    house.step()
    assert states() == [State.RUNNING, State.FAILED, State.QUEUED]
    for state, index in ((State.RUNNING, 0), (State.FAILED, 1), (State.QUEUED, 2)):
        assert [cell.index for cell in house.cells.page(sweep, state, -1, 9)[0]] == [index]
    (failed,) = house.cells.page(sweep, State.FAILED, -1, 9)[0]
    assert failed.error == "ValueError: so"
    house.drain()


@both_databases
def test_pages_of_each_state_hold_what_shows_it(house: House) -> None:
    """While calls wait, are queued, run, have ended and were skipped, of this sweep and of another."""
    include = [{"x": x, "base": "raise" if x == 1 else "ok", "group": x} for x in (1, 2)]
    sweep = house.submit(axes={"group": list(range(10, 17)), "x": [1, 2, 3]}, include=include)
    other = house.submit(axes={"group": list(range(10, 13)), "x": [2, 3, 4]})
    seen: set[State] = set()

    def compare() -> None:
        for which in (sweep, other):
            cells = house.cells.page(which, None, -1, 99)[0]
            stages = house.tasks.page(which, None, "", 99)[0]
            for state in State:
                by_page = pages(lambda after, of=which, in_=state: house.cells.page(of, in_, after, 2), -1)
                expected = [cell for cell in cells if cell.state is state]
                assert [cell for page in by_page for cell in page] == expected
                assert all(len(page) == 2 for page in by_page[:-1])
                found = pages(lambda after, of=which, in_=state: house.tasks.page(of, in_, after, 1), "")
                assert [stage for page in found for stage in page] == [it for it in stages if it.state is state]
                seen.update(item.state for item in (*expected, *stages))

    compare()
    for _ in range(4):
        house.step()
        compare()
        runner = house.runner
        for act, call in zip((runner.start_call, runner.work, runner.fail), list(runner.calls), strict=False):
            act(call)
    house.drain()
    compare()
    assert seen >= {State.PENDING, State.QUEUED, State.RUNNING, State.SUCCEEDED, State.FAILED, State.SKIPPED}


@pytest.mark.parametrize("state", [None, *State])
def test_a_page_is_found_by_an_index(house: House, state: State | None) -> None:
    sweep = house.submit(axes={"x": [1]}, fixed={"base": "ok"})
    plans: list[str] = []

    def explain(connection: sa.Connection, _cursor: object, statement: str, given: object, *_: object) -> None:
        if " LIMIT " in statement:
            rows = connection.connection.cursor().execute(f"EXPLAIN QUERY PLAN {statement}", given).fetchall()
            plans.append("; ".join(row[3] for row in rows))

    sa.event.listen(sa.Engine, "before_cursor_execute", explain)
    try:
        house.cells.page(sweep, state, 5, 10)
        house.tasks.page(sweep, state, "k", 10)
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", explain)
    of_cells, of_stages = plans
    if state is None:
        assert "SEARCH cells USING INDEX sqlite_autoindex_cells_1 (sweep=? AND idx>?)" in of_cells
    elif state in (State.QUEUED, State.RUNNING):
        assert "SEARCH cells USING INDEX ix_cells_call (call=?)" in of_cells
        assert "SEARCH stages USING INDEX ix_stages_call (call=?)" in of_stages
    else:
        assert "INDEX cells_in_state (sweep=? AND state=? AND idx>?)" in of_cells
        assert "SCAN" not in of_cells.replace("SCAN found", "").replace("SCAN anon_1", "")
    if state in (State.FAILED, State.SKIPPED, State.CANCELLED):
        assert "INDEX stages_without_result (sweep=? AND state=? AND key>?)" in of_stages
    if state not in (State.QUEUED, State.RUNNING):  # those are few
        assert "TEMP B-TREE" not in of_cells.split("anon_1")[0]
    house.drain()
