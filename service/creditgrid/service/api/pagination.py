"""Pages of a list: an opaque cursor holds the position after which the next page starts."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated

from fastapi import Query
from starlette.exceptions import HTTPException

Limit = Annotated[int, Query(ge=1, le=1000, description="Items on a page, at most.")]
Cursor = Annotated[str | None, Query(max_length=1000, description="`next` of the previous page.")]


def encode(position: str | int | None) -> str | None:
    """The cursor for a position; None is the end of the list."""
    return None if position is None else base64.urlsafe_b64encode(str(position).encode()).decode().rstrip("=")


def decode(cursor: str) -> str:
    """The position in a cursor.

    Raises:
        HTTPException: 400 for a cursor that ``encode`` did not make.
    """
    try:
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        return raw.decode("ascii")
    except (binascii.Error, ValueError) as error:
        raise _invalid(cursor) from error


def decode_number(cursor: str) -> int:
    """The whole number in a cursor; raises as ``decode`` does."""
    position = decode(cursor)
    if not position.isdecimal() or len(position) > 18:  # the ledger's numbers have fewer digits
        raise _invalid(cursor)
    return int(position)


def _invalid(cursor: str) -> HTTPException:
    return HTTPException(400, f"the cursor {cursor!r:.60} is not `next` of any page; start without a cursor")
