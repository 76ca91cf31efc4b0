"""Result rows: those of one sweep, and SQL over all rows."""

from __future__ import annotations

import time
from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Header, Query
from fastapi.responses import StreamingResponse

from creditgrid.core.wire import MEDIA_TYPES
from creditgrid.core.wire import Query as SqlQuery
from creditgrid.service.api.auth import PROTECTED
from creditgrid.service.api.dependencies import ContextDep, ServicesDep
from creditgrid.service.reading.formats import BATCH_ROWS, negotiate, stream

router = APIRouter(prefix=PROTECTED, tags=["results"])

Format = Annotated[str | None, Query(alias="format", description="arrow, parquet, csv or json; overrides Accept.")]
Accept = Annotated[str | None, Header(description="One of the response's media types.")]
ENCODED: dict[int | str, dict[str, Any]] = {
    200: {"description": "Rows", "content": {media_type: {} for media_type in MEDIA_TYPES.values()}}
}


@router.get("/sweeps/{sweep}/results", response_class=StreamingResponse, responses=ENCODED)
def results(services: ServicesDep, sweep: str, format_: Format = None, accept: Accept = None) -> StreamingResponse:
    """The rows of a sweep's finished cells, in the order of the grid, with its experiment's columns."""
    wanted = negotiate(accept, format_)
    return stream(services.rows.of(sweep), wanted, f"{sweep}-results")


@router.post("/query", response_class=StreamingResponse, responses=ENCODED)
async def query(
    context: ContextDep, body: SqlQuery, format_: Format = None, accept: Accept = None
) -> StreamingResponse:
    """One SELECT over the table `results` (every row of every sweep) and the views `cells` and `sweeps`."""
    wanted = negotiate(accept, format_)
    start = time.perf_counter()
    outcome = "refused"
    try:
        table = await to_thread.run_sync(context.sandbox.query, body.sql, limiter=context.query_threads)
        outcome = "answered"
    finally:
        context.metrics.queries.labels(outcome).observe(time.perf_counter() - start)
    return stream(table.to_reader(BATCH_ROWS), wanted, "query")
