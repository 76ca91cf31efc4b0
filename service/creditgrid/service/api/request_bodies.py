"""Request bodies: never more than a bound is read, and a spec is JSON or YAML in UTF-8."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import Depends, Request
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from creditgrid.core.spec.text import parse_json, parse_text
from creditgrid.core.wire import MAX_SPEC_BYTES, Extension
from creditgrid.service.api.problems import problem, respond

JSON_TYPES = ("application/json",)
YAML_TYPES = ("application/yaml", "text/yaml", "application/x-yaml")
DRAINED = 256 * 2**20
"""Of a body that is too large, this much is thrown away unread so that the client gets to read the answer."""


class BodyLimit:
    """ASGI middleware: a body that is too long is refused, by its announced length or while it comes in.

    Args:
        app: what is behind it.
        uploads: the paths whose bodies may be longer than a spec, and how many bytes.
    """

    def __init__(self, app: ASGIApp, uploads: Mapping[str, int]) -> None:
        self._app, self._uploads = app, uploads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = self._uploads.get(scope["path"], MAX_SPEC_BYTES)
        detail = f"the body is longer than the {limit:,} bytes that are accepted"
        announced = Headers(scope=scope).get("content-length", "")
        if announced.isdecimal() and int(announced) > limit:
            await _drain(scope, receive)
            await respond(problem(413, detail), {"Connection": "close"})(scope, receive, send)
            return
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > limit:
                await _drain(scope, receive)
                raise HTTPException(413, detail, {"Connection": "close"})
            return message

        await self._app(scope, counted, send)


async def _drain(scope: Scope, receive: Receive) -> None:
    if Headers(scope=scope).get("expect", "").lower() == "100-continue":
        return  # the client asks before it sends, and the answer is no
    seen = 0
    while seen < DRAINED:
        message = await receive()
        seen += len(message.get("body", b""))
        if message["type"] != "http.request" or not message.get("more_body", False):
            return


def parse_document(body: bytes, content_type: str) -> Any:
    """The document in a request body.

    Raises:
        SpecError: when it cannot be read.
        HTTPException: 415 for a content type that is neither JSON nor YAML.
    """
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type in JSON_TYPES:
        return parse_json(body)
    if media_type in YAML_TYPES:
        return parse_text(body)
    accepted = ", ".join((*JSON_TYPES, *YAML_TYPES))
    raise HTTPException(415, f"a spec is sent as one of {accepted}; got {content_type!r:.100}")


async def _body(request: Request) -> bytes:
    return await request.body()


BodyDep = Annotated[bytes, Depends(_body)]


def _by_hand(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    """OpenAPI's description of a body that is read by hand."""
    content = {kind: {"schema": schema} for kind in ("application/json", "application/yaml")}
    return {"requestBody": {"required": True, "description": description, "content": content}}


SPEC_BODY = _by_hand("A sweep spec, as JSON or YAML in UTF-8.", {"type": "object"})
EXTENSION_BODY = _by_hand("What to add to a sweep, as JSON or YAML in UTF-8.", Extension.model_json_schema())
