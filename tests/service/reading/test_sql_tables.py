"""Cells and sweeps as tables for SQL."""

from __future__ import annotations

from sweeping import House


def test_tables_of_all_sweeps_are_there_for_sql(house: House) -> None:
    one, two = house.submit(name="one", axes={"x": [1, 2]}), house.submit(name="two", axes={"x": [2]})
    house.control.cancel(two)
    cells = house.sql_tables.cells().read_all()
    assert cells.schema.names == ["sweep", "idx", "cell", "state"]
    found = sorted((row["sweep"], row["idx"], row["state"]) for row in cells.to_pylist())
    assert found == sorted([(one, 0, "pending"), (one, 1, "pending"), (two, 0, "cancelled")])
    sweeps = house.sql_tables.sweeps().read_all().to_pylist()
    assert [(row["id"], row["name"], row["state"], row["cells"]) for row in sweeps] == [
        (one, "one", "pending", 2),
        (two, "two", "cancelled", 1),
    ]
    assert sweeps[0]["finished_at"] is None
    assert sweeps[1]["finished_at"].tzinfo is not None
    house.drain()
    assert {row["state"] for row in house.sql_tables.cells().read_all().to_pylist()} == {"succeeded", "cancelled"}
