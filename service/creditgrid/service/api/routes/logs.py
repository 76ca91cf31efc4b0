"""What tasks print: their logs, at once or as they grow."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import PlainTextResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from creditgrid.core.wire import LogView, Page
from creditgrid.service.api.auth import PROTECTED
from creditgrid.service.api.dependencies import ActorDep, Context, ContextDep
from creditgrid.service.api.log_followers import LogFollowers
from creditgrid.service.api.shared_reads import Read
from creditgrid.service.people.actor import Actor
from creditgrid.service.reading.logs import TaskLog
from creditgrid.workers.call_log import BOUND

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 1.0
"""Between two looks at a log that is followed; the pause grows while nothing comes."""

router = APIRouter(prefix=PROTECTED, tags=["tasks"])

DESCRIBED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The text; bytes that are not UTF-8 are replaced, and all else is as it was printed.",
        "content": {"text/plain": {"schema": {"type": "string"}}},
        "headers": {
            "X-Log-Dropped": {
                "description": "Bytes of the text that are not kept: a call keeps its last 1 MiB.",
                "schema": {"type": "integer"},
            },
            "X-Log-Next": {
                "description": "The position after the text, for `after`. Not with `follow`.",
                "schema": {"type": "string"},
            },
            "X-Log-Ended": {
                "description": "Whether the call of the task has ended, so that nothing more comes.",
                "schema": {"type": "boolean"},
            },
        },
    }
}


@router.get("/tasks/{key}/logs", response_class=PlainTextResponse, responses=DESCRIBED)
async def logs(
    *,
    context: ContextDep,
    actor: ActorDep,
    key: str,
    after: Annotated[str, Query(description="Only what comes after this position: `X-Log-Next` of an answer.")] = "",
    tail: Annotated[int | None, Query(ge=0, le=2**63 - 1, description="Only the last bytes of what is there.")] = None,
    follow: Annotated[bool, Query(description="Send what is there, and go on until the call ends.")] = False,
) -> Response:
    """What a task, or the call that computes it with others, printed, warned and logged.

    A line before the text of each attempt says where it ran. The text of a task without output is empty.
    """
    found = await _read(context, key, after, tail)
    headers = {
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
        "X-Log-Dropped": str(found.dropped),
        "X-Log-Ended": str(found.ended).lower(),
    }
    if not follow:
        return PlainTextResponse(found.text, headers={**headers, "X-Log-Next": found.next})
    stream = _stream(context, actor, key, found)
    return _Followed(context.log_followers, stream, headers={**headers, "X-Accel-Buffering": "no"})


@router.get("/sweeps/{sweep}/logs")
async def sweep_logs(
    context: ContextDep,
    sweep: str,
    limit: Annotated[int, Query(ge=1, le=1000, description="The most logs.")] = 100,
) -> Page[LogView]:
    """Which calls of a sweep have printed something: those that were written last first, in one page."""

    def read() -> Read[Page[LogView]]:
        found = context.services.logs.of_sweep(sweep, limit)
        return Read(Page(items=found), 300 * len(found))

    return await context.log_lists.get(("logs", sweep, limit), read, lambda: context.services.changes.version)


class _Followed(StreamingResponse):
    """A log that is followed; it counts as such until its end.

    Raises:
        BusyError: too many logs are followed.
    """

    media_type = "text/plain"

    def __init__(self, followers: LogFollowers, content: AsyncIterator[bytes], **options: Any) -> None:
        super().__init__(content, **options)
        self._followers = followers
        followers.enter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See StreamingResponse."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._followers.leave()


async def _stream(context: Context, actor: Actor, key: str, found: TaskLog) -> AsyncIterator[bytes]:
    """Ends with the call, with the service, with the client, or soon after the actor's token."""
    pause = FIRST_PAUSE_S
    while True:
        if found.text:
            yield found.text
        if found.ended or context.stopping.is_set() or not context.services.tokens.accepts(actor):
            return
        await asyncio.sleep(pause)
        pause = FIRST_PAUSE_S if found.text else min(LONGEST_PAUSE_S, pause * 2)
        found = await _read(context, key, found.next, None)


async def _read(context: Context, key: str, after: str, tail: int | None) -> TaskLog:
    """A part of the log, read once for all who ask for it at the same time; after the call's end, all of it."""
    read = partial(context.services.logs.of_task, key, after, BOUND if tail is None else min(tail, BOUND))

    def measured() -> Read[TaskLog]:
        found = read()
        return Read(found, len(found.text))

    try:
        return await context.reads.get(("log", key, after, tail), measured, lambda: context.services.changes.version)
    except ValueError as error:
        raise HTTPException(400, str(error)) from error
