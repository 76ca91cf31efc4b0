"""An experiment's summary of a sweep."""

from __future__ import annotations

import math

from sweeping import House


def test_the_summary_is_the_experiments_own_over_the_sweeps_rows(house: House) -> None:
    small = house.submit(axes={"x": [1, 2]})
    empty = house.summaries.of(small)
    assert (list(empty.rows), empty.complete) == ([{"n": 0, "total": 0}], False)
    house.drain()
    house.submit(axes={"x": [3, 4]})
    house.drain()
    both = house.submit(axes={"x": [2, 3]})  # computed by others
    view = house.summaries.of(both)
    assert (view.sweep, view.title, view.columns, view.complete) == (both, "Rows", ["n", "total"], True)
    assert view.rows == [{"n": 2, "total": 10.0}]
    lost = house.submit(axes={"x": [1, 5]}, include=[{"x": 6, "behaviour": "nan"}, {"x": 7, "behaviour": "raise"}])
    house.drain()
    view = house.summaries.of(lost)
    assert not view.complete
    assert view.rows == [{"n": 1, "total": 2.0}]  # one call of three failed whole


def test_diverged_rows_are_rows_of_the_summary_without_their_number(house: House) -> None:
    sweep = house.submit(axes={"x": [1], "behaviour": ["ok", "nan"]})
    house.drain()
    view = house.summaries.of(sweep)
    assert view.complete
    assert view.rows == [{"n": 2, "total": 2.0}]
    assert all(not isinstance(value, float) or math.isfinite(value) for row in view.rows for value in row.values())
