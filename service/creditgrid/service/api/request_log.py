"""One log line a request: its method, path, status and duration, and never its headers, query string or body."""

from __future__ import annotations

import re
import time
import uuid

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

QUIET = ("/healthz", "/readyz", "/metrics")
"""Paths that machines request every few seconds; their requests are logged at debug level."""


class RequestLogMiddleware:
    """Gives each request an id (its own ``X-Request-ID`` if it has a valid one) and logs the request when it ends."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request = given if re.fullmatch(r"[\w.-]{1,64}", given, re.ASCII) else uuid.uuid4().hex[:16]
        start = time.perf_counter()
        status = 0  # stays 0 when the client disconnects before the response

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = request
            await send(message)

        with structlog.contextvars.bound_contextvars(request=request):
            try:
                await self._app(scope, receive, send_with_id)
            finally:
                logger = structlog.get_logger("creditgrid.http")
                log = logger.debug if scope["path"] in QUIET else logger.info
                ms = round(1000 * (time.perf_counter() - start), 1)
                log("request", method=scope["method"], path=scope["path"], status=status, ms=ms)
