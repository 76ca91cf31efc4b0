"""Opaque cursors: what a list goes on after, wrapped so that nobody counts on what is inside."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated

from fastapi import Query
from starlette.exceptions import HTTPException

Limit = Annotated[int, Query(ge=1, le=1000, description="Items on a page, at most.")]
Cursor = Annotated[str | None, Query(max_length=1000, description="`next` of the page before.")]


def encode(position: str | int | None) -> str | None:
    """The cursor for a position; None stands for the end."""
    return None if position is None else base64.urlsafe_b64encode(str(position).encode()).decode().rstrip("=")


def decode(cursor: str) -> str:
    """The position that a cursor stands for.

    Raises:
        HTTPException: 400 for what no page has given out.
    """
    try:
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        return raw.decode("ascii")
    except (binascii.Error, ValueError) as error:
        raise _bad(cursor) from error


def decode_number(cursor: str) -> int:
    """The whole number that a cursor stands for; raises as ``decode`` does."""
    position = decode(cursor)
    if not position.isdecimal() or len(position) > 18:  # longer ones are beyond what a ledger numbers
        raise _bad(cursor)
    return int(position)


def _bad(cursor: str) -> HTTPException:
    return HTTPException(400, f"the cursor {cursor!r:.60} is not one that a page gave as `next`: begin without one")
