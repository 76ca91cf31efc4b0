"""The tasks of a sweep."""

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
