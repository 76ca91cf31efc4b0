"""Structured logs: one line an event, JSON for machines or coloured for a person; one line a request.

Nothing of a request but its method, path, status and duration is ever logged: no headers, no query string, no body.
"""

from __future__ import annotations

import logging
import re
import sys
import time
import uuid
from typing import Any, Literal

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

QUIET = ("/healthz", "/readyz", "/metrics")
"""Paths that machines ask for every few seconds; they are logged at debug level."""


def configure(format_: Literal["auto", "json", "console"]) -> None:
    """Send structlog's and the standard library's logs to stderr in one form."""
    if format_ == "auto":
        format_ = "console" if sys.stderr.isatty() else "json"
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if format_ == "json":
        last: list[Any] = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    else:
        # Plain tracebacks: the pretty ones show local variables, and a request's headers are among them.
        plain = structlog.dev.plain_traceback
        last = [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    remove_meta = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=[remove_meta, *last]))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    # What other libraries say of every single step is not news: httpx and sqlalchemy log each call, uvicorn its phases.
    for name in ("uvicorn.error", "httpx", "sqlalchemy", "alembic", "asyncio"):
        logging.getLogger(name).setLevel(logging.WARNING)


class RequestLog:
    """ASGI middleware: names each request by an id (its own ``X-Request-ID`` if it has one) and logs its end."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request = given if re.fullmatch(r"[\w.-]{1,64}", given, re.ASCII) else uuid.uuid4().hex[:16]
        began = time.perf_counter()
        status = 0  # stays 0 when the client went away before an answer

        async def named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = request
            await send(message)

        with structlog.contextvars.bound_contextvars(request=request):
            try:
                await self._app(scope, receive, named)
            finally:
                log = structlog.get_logger("creditgrid.http")
                tell = log.debug if scope["path"] in QUIET else log.info
                ms = round(1000 * (time.perf_counter() - began), 1)
                tell("request", method=scope["method"], path=scope["path"], status=status, ms=ms)
