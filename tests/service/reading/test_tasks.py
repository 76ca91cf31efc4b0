"""The cells of a sweep and the tasks that they depend on."""

from __future__ import annotations

from sweeping import House, pages

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
