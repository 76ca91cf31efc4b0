"""Around each request: its id, its log line, its measurement, and the answer to an unexpected error.

The log line has the method, path, status and duration, and never the headers, the query string or the body.
"""

from __future__ import annotations

import re
import time
import uuid

import prometheus_client as prometheus
import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from creditgrid.service.api.problems import METHODS, problem, problem_response

CLIENT_GONE = 499
"""The status, in log and metrics, of a request whose client disconnected before the response. It is not sent."""
QUIET = ("/healthz", "/readyz", "/metrics")
"""Paths that machines request every few seconds; their requests are logged at debug level."""


class RequestMiddleware:
    """Gives each request an id (its own ``X-Request-ID`` if it has a valid one), and logs and measures it at its end.

    An unexpected error is logged with its traceback; the response does not show it.

    Args:
        app: the next ASGI app.
        durations: takes the seconds of each request, under its method, its route's template and its status.
    """

    def __init__(self, app: ASGIApp, durations: prometheus.Histogram) -> None:
        self._app, self._durations = app, durations

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request = given if re.fullmatch(r"[\w.-]{1,64}", given, re.ASCII) else uuid.uuid4().hex[:16]
        scope.setdefault("state", {})["request"] = request
        start = time.perf_counter()
        status = 0  # stays 0 while there is no response
        gone = False

        async def receive_and_note() -> Message:
            nonlocal gone
            message = await receive()
            gone = gone or (message["type"] == "http.disconnect" and not status)
            return message

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = request
            await send(message)

        with structlog.contextvars.bound_contextvars(request=request):
            try:
                await self._app(scope, receive_and_note, send_with_id)
            except ClientDisconnect:
                gone = gone or not status
            except Exception:
                structlog.get_logger("creditgrid").exception("request failed", path=scope["path"])
                if status:  # part of the response is sent: only a closed connection shows that it is incomplete
                    raise
                detail = "an unexpected error; the service's log has its traceback under this request's id"
                await problem_response(problem(500, detail))(scope, receive, send_with_id)
            finally:
                seconds = time.perf_counter() - start
                status = CLIENT_GONE if gone else status
                logger = structlog.get_logger("creditgrid.http")
                log = logger.debug if scope["path"] in QUIET else logger.info
                log(
                    "request",
                    method=scope["method"],
                    path=scope["path"],
                    status=status,
                    ms=round(1000 * seconds, 1),
                )
                method = scope["method"] if scope["method"] in METHODS else "other"
                route = getattr(scope.get("route"), "path", "none")
                self._durations.labels(method, route, str(status or "none")).observe(seconds)
