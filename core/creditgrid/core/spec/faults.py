"""Faults of a spec: pointers to them, the values in their messages, and how many are reported."""

from __future__ import annotations

from typing import Any

from creditgrid.core.errors import Fault

MAX_FAULTS = 20
"""At most this many faults are reported; one more says how many were left out."""


def pointer(*parts: str | int) -> str:
    """The RFC 6901 JSON pointer of these steps."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in parts)


def shown(value: Any) -> str:
    """The value as an error message shows it: at most 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def bounded(faults: list[Fault]) -> list[Fault]:
    """The first ``MAX_FAULTS`` faults, and how many more there are."""
    more = len(faults) - MAX_FAULTS
    return faults if more <= 0 else [*faults[:MAX_FAULTS], Fault(f"and {more} more", "")]
