"""The cells of a sweep."""

from __future__ import annotations

from sweeping import House, pages

from creditgrid.core.states import State


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
