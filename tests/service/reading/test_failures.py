"""Failures by cause."""

from __future__ import annotations

from sweeping import House


def test_failures_are_grouped_by_cause_the_most_frequent_first(house: House) -> None:
    sweep = house.submit(axes={"group": [0, 1, 2], "x": [1, 2]}, include=[{"x": 9, "base": "raise", "group": 9}])
    house.step()
    errors = {0: "ValueError: rare", 1: "ValueError: frequent", 2: "ValueError: frequent"}
    for number, call in list(house.runner.calls.items()):
        if call.kind == "noop":
            group = call.tasks[0].params["group"]
            house.runner.fail(number, error=errors[group] + f"\nmore of {group}")
    house.drain()
    found = house.failures.of(sweep)
    assert [(view.cause, view.kind, view.count, view.skipped) for view in found] == [
        ("ValueError: frequent", "noop", 4, 0),
        ("ValueError: rare", "noop", 2, 0),
        ("ValueError: the base was asked to raise", "noop_base", 1, 1),
    ]
    keys = {cell.key for cell in house.cells.page(sweep, None, -1, 20)[0]}
    assert found[0].key in keys
    assert "Traceback" in found[2].traceback
    assert house.failures.of(house.submit(axes={"x": [77]})) == []
    house.drain()
