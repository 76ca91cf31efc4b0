"""Curves under SQL: those of one sweep, whoever computed them, and no files for queries that do not name them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anyio
import numpy as np
import pyarrow as pa
import pytest
from sweeping import House, both_databases

from creditgrid.core.errors import NotFoundError
from creditgrid.service.reading.sql import Query, Sandbox
from creditgrid.workers.runner import Finished, Point


@pytest.fixture
def sandbox(house: House) -> Iterator[Sandbox]:
    made = Sandbox(house.sql_tables, 20.0, memory=256 * 10**6, max_rows=1000)
    yield made
    made.close()


async def answer(sandbox: Sandbox, query: Query) -> pa.Table:
    async with sandbox.answer(query) as pieces:
        data = b"".join([piece async for piece in pieces])
    return pa.ipc.open_stream(data).read_all()


def ask(sandbox: Sandbox, query: Query | str) -> list[dict[str, Any]]:
    asked = Query(query, "arrow") if isinstance(query, str) else query
    rows: list[dict[str, Any]] = anyio.run(answer, sandbox, asked).to_pylist()
    return rows


def measured(house: House, last: int) -> None:
    """The one call that is in flight makes its artifact, with a curve up to ``last``."""
    house.step()
    (number,) = house.runner.calls
    call = house.runner.calls.pop(number)
    (task,) = call.tasks
    size = house.store.save(task.key, task.payload(), {"one": np.ones(1)}, {})
    points = [Point(epoch, {"loss": 1 / epoch}, 1e9, 1, "h", "cpu") for epoch in range(1, last + 1)]
    house.runner.report(Finished(number, 1.0, "h", "cpu", sizes={task.key: size}, points=points))
    house.drain()


@both_databases
def test_a_sweep_has_the_curves_of_stages_that_another_one_computed(house: House, sandbox: Sandbox) -> None:
    one = house.submit(name="one", fixed={"base": "ok"}, axes={"x": [1]})
    measured(house, 3)
    two = house.submit(name="two", fixed={"base": "ok"}, axes={"x": [2]})
    other = house.submit(name="other", axes={"x": [3]})
    house.drain()
    for sweep in (one, two):
        rows = ask(sandbox, house.services.rows.curves_query(sweep, "arrow"))
        assert [(row["epoch"], row["loss"], row["base"], row["sweep"]) for row in rows] == [
            (1, 1.0, "ok", one), (2, 0.5, "ok", one), (3, 1 / 3, "ok", one),
        ]  # fmt: skip
        joined = f"SELECT c.epoch FROM curves c JOIN stages s ON s.run = c.run WHERE s.sweep = '{sweep}'"
        assert len(ask(sandbox, joined)) == 3
    assert ask(sandbox, house.services.rows.curves_query(other, "arrow")) == []
    with pytest.raises(NotFoundError):
        house.services.rows.curves_query("s'", "arrow")


def test_queries_that_do_not_name_them_read_none_of_their_files(
    house: House, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.submit(fixed={"base": "ok"}, axes={"x": [1]})
    measured(house, 3)
    read: list[str] = []
    files = house.curves.files
    monkeypatch.setattr(house.curves, "files", lambda: (read.append("files"), files())[1])
    assert ask(sandbox, "SELECT count(*) AS n FROM results JOIN cells USING (cell)") == [{"n": 1}]
    assert not read
    assert [row["name"] for row in ask(sandbox, "SHOW TABLES")] == ["cells", "curves", "results", "stages", "sweeps"]
    assert ask(sandbox, "SELECT sum(epoch) AS n FROM CURVES") == [{"n": 6}]
    assert len(read) == 2
