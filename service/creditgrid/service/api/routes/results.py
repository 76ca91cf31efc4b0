"""Rows: those of one sweep's cells, its curves, and SQL over all."""

from __future__ import annotations

from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Header, Query
from fastapi.responses import StreamingResponse

from creditgrid.core.wire import MEDIA_TYPES
from creditgrid.core.wire import Query as SqlQuery
from creditgrid.service.api.accept import negotiate
from creditgrid.service.api.auth import PROTECTED
from creditgrid.service.api.dependencies import ActorDep, Context, ContextDep
from creditgrid.service.api.row_response import RowResponse
from creditgrid.service.people.actor import Actor
from creditgrid.service.reading import sql

router = APIRouter(prefix=PROTECTED, tags=["results"])

Format = Annotated[str | None, Query(alias="format", description="arrow, parquet, csv or json; overrides Accept.")]
Accept = Annotated[str | None, Header(description="One of the response's media types.")]
ENCODED: dict[int | str, dict[str, Any]] = {
    200: {"description": "Rows", "content": {media_type: {} for media_type in MEDIA_TYPES.values()}}
}


@router.get("/sweeps/{sweep}/results", response_class=StreamingResponse, responses=ENCODED)
async def results(
    context: ContextDep, actor: ActorDep, sweep: str, format_: Format = None, accept: Accept = None
) -> RowResponse:
    """The rows of a sweep's finished cells, in the order of the grid, with its experiment's columns."""
    wanted = negotiate(accept, format_)
    query = await to_thread.run_sync(context.services.rows.query, sweep, wanted)
    return _answer(context, actor, query, f"{sweep}-results")


@router.get("/sweeps/{sweep}/curves", response_class=StreamingResponse, responses=ENCODED)
async def curves(
    context: ContextDep, actor: ActorDep, sweep: str, format_: Format = None, accept: Accept = None
) -> RowResponse:
    """What each run that the sweep needs has measured so far: a row for each epoch, ordered by kind, run and epoch."""
    wanted = negotiate(accept, format_)
    query = await to_thread.run_sync(context.services.rows.curves_query, sweep, wanted)
    return _answer(context, actor, query, f"{sweep}-curves")


@router.post("/query", response_class=StreamingResponse, responses=ENCODED)
async def query(
    context: ContextDep, actor: ActorDep, body: SqlQuery, format_: Format = None, accept: Accept = None
) -> RowResponse:
    """One SELECT over the tables `results` and `curves`, and the views `cells`, `stages` and `sweeps`."""
    return _answer(context, actor, sql.Query(body.sql, negotiate(accept, format_)), "query")


def _answer(context: Context, actor: Actor, query: sql.Query, name: str) -> RowResponse:
    def observe(outcome: str, seconds: float) -> None:
        context.metrics.queries.labels(outcome).observe(seconds)

    return RowResponse(context.sandbox, query, name, actor.name, observe)
