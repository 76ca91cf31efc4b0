"""Rows over HTTP: of a sweep, and by SQL."""

from __future__ import annotations

import io
import json
import re
import socket
import time
from datetime import UTC, datetime
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fastapi import FastAPI
from service_fakes import AppClient, Fakes, problem_in

from creditgrid.core.experiments.registry import registry
from creditgrid.core.rows import columns
from creditgrid.core.wire import MEDIA_TYPES

STARTED = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
LINESEARCH = list(columns(registry().experiments["linesearch"]))


def row(cell: str, **values: Any) -> dict[str, Any]:
    return {"cell": cell * 64, "experiment": "linesearch", "sweep": "s0", "eta": 0.1, "started_at": STARTED} | values


@pytest.fixture
def rows(fakes: Fakes) -> None:
    """Rows of two of the sweep's three cells, out of order, among rows that are not the sweep's."""
    fakes.results.set(
        pa.Table.from_pylist(
            [
                row("c", delta_loss_same=-3.0),
                row("d", delta_loss_same=-4.0),
                row("a", delta_loss_same=-1.0, eta=0.5),
                row("a", experiment="other", other_metric=7.0),
            ],
            schema=pa.schema(
                [
                    ("cell", pa.string()),
                    ("experiment", pa.string()),
                    ("sweep", pa.string()),
                    ("eta", pa.float64()),
                    ("delta_loss_same", pa.float64()),
                    ("other_metric", pa.float64()),
                    ("started_at", pa.timestamp("us", "UTC")),
                ]
            ),
        )
    )


@pytest.mark.usefixtures("rows")
def test_rows_of_a_sweep_in_the_order_of_its_cells(client: AppClient, sweep: str) -> None:
    response = client.get(f"/v1/sweeps/{sweep}/results")
    assert response.headers["content-type"] == "application/json"
    found = response.json()
    assert [(item["cell"][0], item["delta_loss_same"], item["eta"]) for item in found] == [
        ("a", -1.0, 0.5),
        ("c", -3.0, 0.1),
    ]
    assert list(found[0]) == LINESEARCH  # all of the experiment's columns and no others
    assert found[0]["started_at"] == "2026-01-02T03:04:05.000000Z"
    assert found[0]["method"] is None


@pytest.mark.usefixtures("rows")
@pytest.mark.parametrize("by", ["accept", "format"])
def test_formats(client: AppClient, sweep: str, by: str) -> None:
    for name, media_type in MEDIA_TYPES.items():
        options: dict[str, Any] = (
            {"headers": {"Accept": media_type}} if by == "accept" else {"params": {"format": name}}
        )
        response = client.get(f"/v1/sweeps/{sweep}/results", **options)
        assert response.status_code == 200
        assert response.headers["content-type"].partition(";")[0] == media_type
        disposition = response.headers.get("content-disposition")
        assert (f'filename="{sweep}-results.{name}"' in (disposition or "")) == (name in ("parquet", "csv"))
        if name in ("arrow", "parquet"):
            raw = response.content
            table = pa.ipc.open_stream(raw).read_all() if name == "arrow" else pq.read_table(io.BytesIO(raw))
            assert table.column_names == LINESEARCH
            assert table["delta_loss_same"].to_pylist() == [-1.0, -3.0]
            assert table.schema.field("started_at").type == pa.timestamp("us", "UTC")
            assert table.schema.field("seed").type == pa.int64()  # a column that no row has yet


def test_no_rows_yet(client: AppClient, sweep: str) -> None:
    assert client.get(f"/v1/sweeps/{sweep}/results").json() == []
    header = client.get(f"/v1/sweeps/{sweep}/results?format=csv").text
    assert header.strip().replace('"', "").split(",") == LINESEARCH


@pytest.mark.usefixtures("rows")
def test_an_experiment_that_is_not_installed_any_more(client: AppClient, fakes: Fakes) -> None:
    sweep = client.post("/v1/sweeps", json={"name": "n", "experiment": "other"}).json()["id"]
    (found,) = client.get(f"/v1/sweeps/{sweep}/results").json()
    assert found["other_metric"] == 7.0


def test_rows_of_a_cell_are_ordered_by_layer_and_epoch(
    client: AppClient, fakes: Fakes, sweep: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import creditgrid.service.reading.rows as module

    schema = pa.schema(
        [("cell", pa.string()), ("experiment", pa.string()), ("layer", pa.int64()), ("epoch", pa.int64())]
    )
    monkeypatch.setattr(module, "experiment_schema", lambda _: schema)
    order = [(1, 0), (0, 5), (1, 2), (0, 1)]
    made = [row("a", layer=layer, epoch=epoch) for layer, epoch in order]
    fakes.results.set(pa.Table.from_pylist(made, schema=schema))
    found = client.get(f"/v1/sweeps/{sweep}/results").json()
    assert [(item["layer"], item["epoch"]) for item in found] == sorted(order)


def test_many_rows(client: AppClient, fakes: Fakes, sweep: str) -> None:
    keys = [f"{index:064x}" for index in range(30_000)]
    fakes.ledger.keys[sweep] = keys
    schema = pa.schema([("cell", pa.string()), ("experiment", pa.string()), ("eta", pa.float64())])
    fakes.results.set(
        pa.table(
            {"cell": keys[::-1], "experiment": ["linesearch"] * len(keys), "eta": [1.0] * len(keys)}, schema=schema
        )
    )
    table = pa.ipc.open_stream(client.get(f"/v1/sweeps/{sweep}/results?format=arrow").content).read_all()
    assert table["cell"].to_pylist() == keys


def test_not_acceptable(client: AppClient, sweep: str) -> None:
    for path, method in ((f"/v1/sweeps/{sweep}/results", "GET"), ("/v1/query", "POST")):
        options: dict[str, Any] = {"json": {"sql": "SELECT 1"}} if method == "POST" else {}
        assert client.request(method, path, headers={"Accept": "text/html"}, **options).status_code == 406
        assert client.request(method, f"{path}?format=xml", **options).status_code == 406


@pytest.mark.usefixtures("rows")
def test_query(client: AppClient, sweep: str) -> None:
    sql = (
        "SELECT s.name, c.idx, r.delta_loss_same FROM results r JOIN cells c USING (cell) "
        "JOIN sweeps s ON s.id = c.sweep WHERE r.experiment = 'linesearch' ORDER BY c.idx"
    )
    response = client.post("/v1/query", json={"sql": sql})
    assert response.status_code == 200
    assert response.json() == [
        {"name": "one", "idx": 0, "delta_loss_same": -1.0},
        {"name": "one", "idx": 2, "delta_loss_same": -3.0},
    ]
    arrow = client.post("/v1/query", json={"sql": sql}, headers={"Accept": MEDIA_TYPES["arrow"]}).content
    assert pa.ipc.open_stream(arrow).read_all()["idx"].to_pylist() == [0, 2]
    text = client.post("/v1/query?format=csv", json={"sql": "SELECT 1 AS x, 2 AS x"}).text
    assert text.splitlines()[1] == "1,2"
    assert (
        client.post("/v1/query?format=parquet", json={"sql": "SELECT 1 AS x, INTERVAL 1 DAY AS i"}).status_code == 200
    )


def test_bad_queries(client: AppClient) -> None:
    for sql, said in [
        ("SELEC 1", "syntax error"),
        ("SELECT * FROM nothing", "nothing"),
        ("DROP TABLE results", "one SELECT"),
        ("SELECT * FROM '/etc/passwd'", "passwd"),
    ]:
        response = client.post("/v1/query", json={"sql": sql})
        assert response.status_code == 400
        assert response.headers["content-type"] == "application/problem+json"
        assert said in response.json()["detail"]


@pytest.mark.parametrize("sql", [5, None, "", "x" * 100_001])
def test_invalid_sql_values(client: AppClient, sql: Any) -> None:
    response = client.post("/v1/query", json={"sql": sql})
    assert response.status_code == 422
    assert response.json()["errors"][0]["pointer"] == "/sql"


def test_every_type_in_every_format(client: AppClient) -> None:
    for name in MEDIA_TYPES:
        response = client.post(f"/v1/query?format={name}", json={"sql": "SELECT * FROM test_all_types()"})
        assert response.status_code == 200, name
        assert response.content


ENDLESS = "SELECT count(*) FROM range(1000000000000) t(i) WHERE i % 7 = 3"


@pytest.mark.slow
def test_clients_that_hang_up_free_their_slots(app: FastAPI, http: httpx.Client) -> None:
    sandbox = app.state.context.sandbox

    def wait_for(queries: int) -> None:
        deadline = time.monotonic() + 30
        while sum(sandbox.queue.lengths().values()) != queries:
            assert time.monotonic() < deadline, sandbox.queue.lengths()
            time.sleep(0.02)

    assert http.post("/v1/query", json={"sql": "SELECT 1"}).status_code == 200
    body = json.dumps({"sql": ENDLESS}).encode()
    head = (
        f"POST /v1/query HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    )
    address = (http.base_url.host, http.base_url.port)
    sockets = [socket.create_connection(address) for _ in range(6)]
    for connection in sockets:
        connection.sendall(head.encode() + b"\r\n\r\n" + body)
    wait_for(6)
    text = http.get("/metrics").text
    waiting = re.search(r'creditgrid_queries{state="waiting"} (\d)', text)
    assert waiting is not None
    assert int(waiting[1]) >= 3
    assert "creditgrid_query_wait_seconds_count" in text
    for connection in sockets:
        connection.close()
    wait_for(0)


@pytest.mark.slow
def test_a_full_queue(app: FastAPI, http: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app.state.context.sandbox.queue, "_limit", 0)
    response = http.post("/v1/query", json={"sql": "SELECT 1"})
    assert problem_in(response, 503).detail == "0 queries wait already: try again later"
    assert int(response.headers["Retry-After"]) > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", list(MEDIA_TYPES))
def test_rows_that_end_early_are_not_taken_for_all(app: FastAPI, http: httpx.Client, name: str) -> None:
    app.state.context.sandbox._max_rows = 50_000
    sql = "SELECT repeat('x', 1000) || i AS x FROM range(60000) t(i)"
    with http.stream("POST", f"/v1/query?format={name}", json={"sql": sql}) as response:
        assert response.status_code == 200
        with pytest.raises(httpx.RemoteProtocolError, match="incomplete"):
            response.read()
    response = http.post(f"/v1/query?format={name}", json={"sql": "SELECT * FROM range(60000)"})
    assert "50,000 rows" in problem_in(response, 400).detail
