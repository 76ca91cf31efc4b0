"""A limit on the length of request bodies."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from creditgrid.core.wire import MAX_SPEC_BYTES
from creditgrid.service.api.problems import problem, problem_response

MAX_DISCARDED_BYTES = 256 * 2**20
"""Bytes of a body over the limit that are received and discarded, because the client reads the response only then."""


class BodyLimitMiddleware:
    """Refuses a body that is too long, by its ``Content-Length`` or while it arrives.

    Args:
        app: the next ASGI app.
        uploads: the limit in bytes of each path whose bodies may be longer than a spec.
    """

    def __init__(self, app: ASGIApp, uploads: Mapping[str, int]) -> None:
        self._app, self._uploads = app, uploads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = self._uploads.get(scope["path"], MAX_SPEC_BYTES)
        detail = f"the body is longer than the limit of {limit:,} bytes"
        length = Headers(scope=scope).get("content-length", "")
        if length.isdecimal() and int(length) > limit:
            await _discard(scope, receive)
            await problem_response(problem(413, detail), {"Connection": "close"})(scope, receive, send)
            return
        received = 0

        async def receive_within_limit() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                await _discard(scope, receive)
                raise HTTPException(413, detail, {"Connection": "close"})
            return message

        await self._app(scope, receive_within_limit, send)


async def _discard(scope: Scope, receive: Receive) -> None:
    if Headers(scope=scope).get("expect", "").lower() == "100-continue":
        return  # the client waits for a response before it sends the body
    received = 0
    while received < MAX_DISCARDED_BYTES:
        message = await receive()
        received += len(message.get("body", b""))
        if message["type"] != "http.request" or not message.get("more_body", False):
            return
