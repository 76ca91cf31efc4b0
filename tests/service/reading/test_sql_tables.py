"""Cells and sweeps as tables for SQL."""

from __future__ import annotations

import pyarrow as pa
import pytest
import sqlalchemy as sa
from sweeping import House, both_databases

from creditgrid.service.ledger import tables
from creditgrid.service.reading.sql_tables import SCHEMAS


def read(house: House, table: str) -> pa.Table:
    with house.sql_tables.snapshot() as snapshot:
        return pa.Table.from_batches(snapshot.scan(table, SCHEMAS[table].names, None), SCHEMAS[table])


@both_databases
def test_tables_of_all_sweeps_are_there_for_sql(house: House) -> None:
    one, two = house.submit(name="one", axes={"x": [1, 2]}), house.submit(name="two", axes={"x": [2]})
    house.control.cancel(two)
    cells = read(house, "cells")
    assert cells.schema.names == ["sweep", "idx", "cell", "state"]
    found = sorted((row["sweep"], row["idx"], row["state"]) for row in cells.to_pylist())
    assert found == sorted([(one, 0, "pending"), (one, 1, "pending"), (two, 0, "cancelled")])
    sweeps = read(house, "sweeps").to_pylist()
    assert [(row["id"], row["name"], row["state"], row["cells"]) for row in sweeps] == [
        (one, "one", "pending", 2),
        (two, "two", "cancelled", 1),
    ]
    assert sweeps[0]["finished_at"] is None
    assert sweeps[1]["finished_at"].tzinfo is not None
    house.drain()
    assert {row["state"] for row in read(house, "cells").to_pylist()} == {"succeeded", "cancelled"}


@both_databases
def test_the_ledger_is_read_in_batches(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the size of the batches, all cells come once, and only those of the sweeps that are needed."""
    one, two = house.submit(name="one", axes={"x": list(range(10))}), house.submit(name="two", axes={"x": [1, 2]})
    whole = sorted(map(str, read(house, "cells").to_pylist()))
    assert len(whole) == 12
    for rows in (1, 3, 10, 100):
        monkeypatch.setattr("creditgrid.service.reading.sql_tables.ROWS_AT_ONCE", rows)
        assert sorted(map(str, read(house, "cells").to_pylist())) == whole
        assert read(house, "sweeps")["id"].to_pylist() == [one, two]
        with house.sql_tables.snapshot() as snapshot:
            first, second = snapshot.scan("cells", ["idx"], [two]), snapshot.scan("cells", ["idx", "state"], [one])
            found = [(batch.num_rows, other.num_rows) for batch, other in zip(first, second, strict=False)]
            assert found[0] == (min(rows, 2), min(rows, 10))
        assert house.sql_tables.cell_index(one)["idx"].to_pylist() == list(range(10))
    house.drain()


@both_databases
def test_a_sweep_that_is_being_planned_is_hidden(house: House) -> None:
    one, two = house.submit(name="one", axes={"x": [1, 2]}), house.submit(name="two", axes={"x": [3]})
    for planned, seen in ((False, {one}), (True, {one, two})):
        with house.ledger.write() as connection:
            connection.execute(sa.update(tables.sweeps).where(tables.sweeps.c.id == two).values(planned=planned))
        assert set(read(house, "sweeps")["id"].to_pylist()) == seen
        assert set(read(house, "cells")["sweep"].to_pylist()) == seen
        with house.sql_tables.snapshot() as snapshot:
            batches = list(snapshot.scan("cells", ["cell", "state"], [two]))
        assert sum(batch.num_rows for batch in batches) == len(seen) - 1
    house.drain()


@both_databases
def test_stages_say_which_run_they_are_of(house: House) -> None:
    """Tasks that one call may compute together are of one run; sweeps may share it."""
    one = house.submit(name="one", fixed={"base": "ok"}, axes={"x": [1, 2]})
    two = house.submit(name="two", fixed={"base": "ok"}, axes={"x": [3]})
    stages = read(house, "stages")
    assert stages.schema.names == ["sweep", "key", "kind", "state", "run"]
    rows = stages.to_pylist()
    assert sorted(row["sweep"] for row in rows) == sorted([one, two])
    assert {(row["kind"], row["state"], row["run"] == row["key"]) for row in rows} == {("noop_base", "pending", True)}
    with house.sql_tables.snapshot() as snapshot:
        (batch,) = snapshot.scan("stages", ["run", "sweep"], [two])
        assert batch.to_pylist() == [{"run": rows[0]["run"], "sweep": two}]
    house.drain()
    assert {row["state"] for row in read(house, "stages").to_pylist()} == {"succeeded"}
