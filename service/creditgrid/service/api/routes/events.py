"""A sweep's events as they come (server-sent events, WHATWG HTML §9.2)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Header, Query
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from creditgrid.core.wire import TERMINAL_EVENT, EventView
from creditgrid.service.api.auth import PROTECTED
from creditgrid.service.api.dependencies import Context, ContextDep

POLL_S = 0.25
KEEP_ALIVE_S = 15.0
BATCH = 500
"""Events that are read at a time."""
LARGEST_ID = 2**63 - 1

router = APIRouter(prefix=PROTECTED, tags=["sweeps"])


@router.get(
    "/sweeps/{sweep}/events",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/event-stream": {}}, "description": "Events; `data` is an EventView"}},
)
async def events(
    context: ContextDep,
    sweep: str,
    after: Annotated[int, Query(ge=0, le=LARGEST_ID, description="Begin after the event with this id.")] = 0,
    last_event_id: Annotated[str | None, Header(description="As `after`; sent by a client that reconnects.")] = None,
) -> StreamingResponse:
    """Every event from the beginning (or after the given id), then new ones as they come, until the sweep has ended."""
    position = _position(last_event_id) if last_event_id else after
    sweeps = context.services.sweeps
    # One event at or after the position there must be, or the id was never given out.
    known = await run_in_threadpool(sweeps.events, sweep, max(position - 1, 0), 1)
    if position > 0 and not known:
        raise HTTPException(
            400, f"event {position} is beyond the newest of sweep {sweep}: go on after one that it sent"
        )
    return StreamingResponse(
        _stream(context, sweep, position),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


def _position(text: str) -> int:
    if text.isascii() and text.isdecimal() and int(text) <= LARGEST_ID:
        return int(text)
    raise HTTPException(400, f"Last-Event-ID {text!r:.60} is not an event's id: a whole number")


async def _stream(context: Context, sweep: str, after: int) -> AsyncIterator[str]:
    """Ends when the sweep has ended and nothing is left to tell, when the service stops, or with the client."""
    sweeps = context.services.sweeps
    quiet_since = time.monotonic()
    # A finished sweep can be retried and finish again, so the terminal event ends the stream only if it still holds.
    may_be_over = True
    yield ": stream opened\n\n"
    while not context.stopping.is_set():
        batch = await run_in_threadpool(sweeps.events, sweep, after, BATCH)
        for event in batch:
            yield _message(event)
        if batch:
            after = batch[-1].id
            may_be_over = batch[-1].type == TERMINAL_EVENT
            quiet_since = time.monotonic()
            continue
        if may_be_over:
            if (await run_in_threadpool(sweeps.get, sweep)).state.finished:
                return
            may_be_over = False
        if time.monotonic() - quiet_since >= KEEP_ALIVE_S:
            yield ": keep-alive\n\n"
            quiet_since = time.monotonic()
        await asyncio.sleep(POLL_S)


def _message(event: EventView) -> str:
    return f"id: {event.id}\nevent: {event.type}\ndata: {event.model_dump_json()}\n\n"
