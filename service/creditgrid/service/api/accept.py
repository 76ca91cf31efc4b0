"""The format of rows that a request accepts."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.exceptions import HTTPException

from creditgrid.core.wire import MEDIA_TYPES

_RANGES = {"*/*": "json", "application/*": "json", "text/*": "csv"}


def negotiate(accept: str | None, format_: str | None) -> str:
    """The format that a request asks for: ``?format=``, or ``Accept`` by its weights, or JSON.

    Raises:
        HTTPException: 406 if there is no acceptable format.
    """
    if format_ is not None:
        if format_ in MEDIA_TYPES:
            return format_
        raise HTTPException(406, f"there is no format {format_!r:.50}; there are {', '.join(MEDIA_TYPES)}")
    by_type = {media_type: name for name, media_type in MEDIA_TYPES.items()} | _RANGES
    wanted: list[tuple[float, str]] = []
    for item in (accept or "*/*").split(","):
        media_type, *parameters = (part.strip().lower() for part in item.split(";"))
        weight = _weight(parameters)
        if media_type in by_type and weight > 0:
            wanted.append((weight, by_type[media_type]))
    if not wanted:
        raise HTTPException(406, f"results come as {', '.join(MEDIA_TYPES.values())}, not as {accept!r:.200}")
    return max(wanted, key=lambda entry: entry[0])[1]


def _weight(parameters: Sequence[str]) -> float:
    for parameter in parameters:
        if parameter.startswith("q="):
            try:
                return float(parameter[2:])
            except ValueError:
                return 0.0
    return 1.0
