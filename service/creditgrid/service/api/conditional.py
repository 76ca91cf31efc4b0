"""JSON answers with an ETag: a client that has the current one gets 304 without a body (RFC 9110, section 13)."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Header
from fastapi.responses import Response

IfNoneMatch = Annotated[
    list[str] | None, Header(description="ETags of answers that the client has: 304 if one of them is current.")
]
CONDITIONAL: dict[int | str, dict[str, Any]] = {304: {"description": "The client's answer is current."}}

_TAG = re.compile(r'(?:W/)?("[^"]*")')


@dataclass(frozen=True, slots=True)
class Document:
    """A JSON body and its ETag."""

    body: bytes
    etag: str


def document(body: bytes) -> Document:
    """The body with its ETag."""
    return Document(body, f'"{hashlib.sha256(body).hexdigest()[:32]}"')


def conditional_response(found: Document, if_none_match: list[str] | None) -> Response:
    """The document, or 304 where one of the client's ETags is its own. Weak tags count as strong, as GET requires."""
    headers = {"ETag": found.etag, "Cache-Control": "no-cache"}
    if if_none_match and _matches(found.etag, if_none_match):
        return Response(status_code=304, headers=headers)
    return Response(found.body, headers=headers, media_type="application/json")


def _matches(etag: str, given: list[str]) -> bool:
    return any(line.strip() == "*" or etag in _TAG.findall(line) for line in given)
