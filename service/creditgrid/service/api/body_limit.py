"""Limits on request bodies: the length of one, the time that it may take, and the bytes of all that are held."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from creditgrid.core.wire import MAX_SPEC_BYTES
from creditgrid.service.api.problems import RETRY_LATER, problem, problem_response

MAX_DISCARDED_BYTES = 256 * 2**20
"""Bytes of a body over the limit that are received and discarded, because the client reads the response only then."""
MAX_HELD_BYTES = 256 * 2**20
"""Bytes of the bodies of all unfinished requests together; uploads are not held in memory, and do not count."""
BODY_S = 20.0
LEAST_RATE = 16 * 2**10
"""A body may take ``BODY_S`` seconds, and one more for each ``LEAST_RATE`` bytes of it that have arrived."""


class BodyLimitMiddleware:
    """Refuses a body that is too long, by its ``Content-Length`` or while it arrives, and one that arrives too slowly.

    Args:
        app: the next ASGI app.
        uploads: the limit in bytes of each path whose bodies may be longer than a spec.
    """

    def __init__(self, app: ASGIApp, uploads: Mapping[str, int]) -> None:
        self._app, self._uploads = app, uploads
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = self._uploads.get(scope["path"], MAX_SPEC_BYTES)
        detail = f"the body is longer than the limit of {limit:,} bytes"
        body = _Body(receive)
        if _is_longer(Headers(scope=scope).get("content-length", ""), limit):
            await _discard(scope, body)
            await problem_response(problem(413, detail), {"Connection": "close"})(scope, receive, send)
            return
        held = 0

        async def receive_within_limits() -> Message:
            nonlocal held
            message = await body.receive()
            if body.received > limit:
                await _discard(scope, body)
                raise HTTPException(413, detail, {"Connection": "close"})
            if scope["path"] not in self._uploads:
                self._held += body.received - held
                held = body.received
                if self._held > MAX_HELD_BYTES and not body.answered:
                    raise HTTPException(
                        503,
                        "too many long bodies arrive at once: try again later",
                        {**RETRY_LATER, "Connection": "close"},
                    )
            return message

        async def send_and_note(message: Message) -> None:
            body.answered = True
            await send(message)

        try:
            await self._app(scope, receive_within_limits, send_and_note)
        finally:
            self._held -= held


class _Body:
    """A request's body as it arrives, in time. The time that the app does not wait for it does not count."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self.received = 0
        self.answered = False
        self._whole = False
        self._waited = 0.0

    async def receive(self) -> Message:
        """The next message.

        Raises:
            HTTPException: 408 for a body that is too slow, unless the answer has started.
        """
        if self._whole or self.answered:
            return await self._receive()
        loop = asyncio.get_running_loop()
        start = loop.time()
        try:
            async with asyncio.timeout(BODY_S + self.received / LEAST_RATE - self._waited):
                message = await self._receive()
        except TimeoutError as error:
            if self.answered:
                return await self._receive()
            seconds = self._waited + loop.time() - start
            detail = f"the body arrives too slowly: {self.received:,} bytes came in {seconds:.0f} s"
            raise HTTPException(408, detail, {"Connection": "close"}) from error
        self._waited += loop.time() - start
        self.received += len(message.get("body", b""))
        self._whole = not message.get("more_body", False)
        return message


def _is_longer(content_length: str, limit: int) -> bool:
    """Whether a body of this ``Content-Length`` is too long; one that is no number is left to the server."""
    digits = content_length.lstrip("0")
    return content_length.isdecimal() and (len(digits) > 18 or int(digits or 0) > limit)


async def _discard(scope: Scope, body: _Body) -> None:
    if Headers(scope=scope).get("expect", "").lower() == "100-continue":
        return  # the client waits for a response before it sends the body
    start = body.received
    with suppress(HTTPException):  # too slow: it gets the answer now
        while body.received - start < MAX_DISCARDED_BYTES:
            message = await body.receive()
            if message["type"] != "http.request" or not message.get("more_body", False):
                return
