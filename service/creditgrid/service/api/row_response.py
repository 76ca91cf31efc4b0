"""Rows as a response that is sent while the query runs. A client that hangs up ends its query."""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from creditgrid.core.errors import CreditGridError
from creditgrid.core.wire import MEDIA_TYPES
from creditgrid.service.api.disconnects import disconnected, until_gone
from creditgrid.service.reading.sql import Query, Sandbox


class RowResponse(Response):
    """The answer of a query. A browser saves Parquet and CSV as the file ``name``.

    An error before the first byte is raised, and becomes a problem document. After it, the connection is closed before
    the end of the body, so that no client takes a part for the whole.

    Args:
        sandbox: runs the query.
        query: the query, with the format of its answer.
        name: of the file.
        client: whose query it is.
        observe: takes the outcome and the seconds until the first byte or the error.
    """

    def __init__(
        self, sandbox: Sandbox, query: Query, name: str, client: str | None, observe: Callable[[str, float], object]
    ) -> None:
        headers = {"Vary": "Accept"}
        if query.format in ("parquet", "csv"):
            headers["Content-Disposition"] = f'attachment; filename="{name}.{query.format}"'
        super().__init__(headers=headers, media_type=MEDIA_TYPES[query.format])
        del self.headers["Content-Length"]
        self._sandbox, self._query, self._client, self._observe = sandbox, query, client, observe
        self._started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the rows, unless the client disconnects."""
        try:
            await until_gone(lambda: self._send(send), lambda: disconnected(receive))
        except ClientDisconnect:
            return
        except CreditGridError as error:
            if not self._started:
                raise
            # Without an end of the body, the server closes the connection.
            structlog.get_logger("creditgrid").warning("rows ended early", path=scope["path"], reason=str(error))

    async def _send(self, send: Send) -> None:
        start, outcome = time.perf_counter(), "refused"
        try:
            async with self._sandbox.answer(self._query, self._client) as pieces:
                async for piece in pieces:
                    if not self._started:
                        outcome = "answered"
                        self._observe(outcome, time.perf_counter() - start)
                        self._started = True
                        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
        finally:
            if not self._started:
                self._observe(outcome, time.perf_counter() - start)
        await send({"type": "http.response.body", "body": b"", "more_body": False})
