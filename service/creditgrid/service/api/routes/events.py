"""A sweep's events as they happen (server-sent events, WHATWG HTML, section 9.2)."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Header, Query
from fastapi.responses import StreamingResponse
from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse, format_sse_event
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from creditgrid.core.wire import TERMINAL_EVENT
from creditgrid.service.api.auth import PROTECTED
from creditgrid.service.api.dependencies import ActorDep, Context, ContextDep
from creditgrid.service.api.shared_reads import Read
from creditgrid.service.people.actor import Actor

KEEP_ALIVE_S = 15.0
BATCH = 500
"""Events that one query reads, at most."""
LARGEST_ID = 2**63 - 1

router = APIRouter(prefix=PROTECTED, tags=["sweeps"])


# The route does not yield: FastAPI ends the stream of such a route normally when it raises, so a client could take a
# part of the events for all of them.
@router.get(
    "/sweeps/{sweep}/events",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/event-stream": {}}, "description": "Events; `data` is an EventView"}},
)
async def events(
    context: ContextDep,
    actor: ActorDep,
    sweep: str,
    after: Annotated[int, Query(ge=0, le=LARGEST_ID, description="Start after the event with this id.")] = 0,
    last_event_id: Annotated[str | None, Header(description="As `after`; sent by a client that reconnects.")] = None,
) -> EventSourceResponse:
    """Every event from the first one (or after the given id), then new events as they happen, until the sweep ends."""
    position = _event_id(last_event_id) if last_event_id else after
    # A valid id is that of an event, or less than that of one.
    known = await run_in_threadpool(context.services.sweeps.events, sweep, max(position - 1, 0), 1)
    if position > 0 and not known:
        raise HTTPException(400, f"sweep {sweep} has no event {position} yet: start after an event that it sent")
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return EventSourceResponse(_stream(context, actor, sweep, position), headers=headers)


def _event_id(text: str) -> int:
    # The number of digits comes first: Python refuses to read thousands of them.
    if text.isascii() and text.isdecimal() and len(text) <= len(str(LARGEST_ID)) and int(text) <= LARGEST_ID:
        return int(text)
    raise HTTPException(400, f"Last-Event-ID {text!r:.60} is not the id of an event: a whole number")


@dataclass(frozen=True, slots=True)
class _Page:
    """Events as they are sent."""

    text: bytes
    last: int | None  # the id of the last event
    terminal: bool  # it ends the sweep
    full: bool  # there may be more


async def _stream(context: Context, actor: Actor, sweep: str, position: int) -> AsyncIterator[bytes]:
    """Ends when the sweep is finished and all its events are sent, when the service stops, with the client, or at the
    first event after the actor's token has ended."""
    changes = context.services.changes
    last_sent = time.monotonic()
    # A finished sweep can be retried and finish again, so after a terminal event the stream ends only if the sweep is
    # still finished.
    may_be_finished = True
    yield format_sse_event(comment="stream opened")
    while not context.stopping.is_set() and context.services.tokens.accepts(actor):
        seen = changes.of_events(sweep)  # before the read: an event in between is not missed
        page = await _page_after(context, sweep, position)
        if page.last is not None:
            yield page.text
            position, may_be_finished = page.last, page.terminal
            last_sent = time.monotonic()
            if page.full or page.terminal:
                continue
        elif may_be_finished:
            if await _is_finished(context, sweep):
                return
            may_be_finished = False
        await context.listeners.wait(sweep, seen, last_sent + KEEP_ALIVE_S - time.monotonic())
        if time.monotonic() - last_sent >= KEEP_ALIVE_S:
            yield KEEPALIVE_COMMENT
            last_sent = time.monotonic()


async def _page_after(context: Context, sweep: str, position: int) -> _Page:
    """The next events, read and written out once for all listeners who are at this position."""

    def read() -> Read[_Page]:
        batch = context.services.sweeps.events(sweep, position, BATCH)
        text = b"".join(
            format_sse_event(id=str(event.id), event=event.type, data_str=event.model_dump_json()) for event in batch
        )
        last, terminal = (batch[-1].id, batch[-1].type == TERMINAL_EVENT) if batch else (None, False)
        page = _Page(text, last, terminal, full=len(batch) == BATCH)
        return Read(page, len(text), settled=True, final=page.full)

    changes = context.services.changes
    return await context.reads.get(("events", sweep, position), read, lambda: changes.of_events(sweep))


async def _is_finished(context: Context, sweep: str) -> bool:
    def read() -> Read[bool]:
        finished = context.services.sweeps.get(sweep).state.finished
        return Read(finished, 1, settled=finished)

    return await context.reads.get(("finished", sweep), read, lambda: context.services.changes.of_sweep(sweep))
