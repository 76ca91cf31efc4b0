"""The text of a call's log, as people read it: from a position on, with a line before that of each attempt."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from creditgrid.workers.call_log import BOUND, HEAD, Attempt, Head

LINE = 2**13
"""Where old text was dropped, the rest of a line of at most this length is left out too."""
_DROPPED = "=== {:,} bytes before this were dropped: a call keeps its last {:,} ===\n"


@dataclass(frozen=True, slots=True)
class LogText:
    """Text of a log, with a line before that of each attempt.

    ``end`` is the position after it, and ``shown`` the number of the last attempt with a line. ``dropped`` bytes of the
    text that was asked for are not kept.
    """

    data: bytes = b""
    end: int = 0
    shown: int = 0
    dropped: int = 0


def read_log(path: Path, since: int = 0, shown: int = 0, limit: int = BOUND) -> LogText:
    """The text of a log from a position on, at most about the last ``limit`` bytes; empty where there is no file.

    Args:
        since, shown: ``end`` and ``shown`` of what was read before.

    Raises:
        OSError: the file cannot be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return LogText(end=since, shown=shown)
    try:
        head, size = Head.read(descriptor), os.fstat(descriptor).st_size
        end = head.base + max(size - HEAD, 0)
        kept = max(head.base, end - BOUND)
        first = min(end, max(since, kept, end - limit))
        data = os.pread(descriptor, end - first, first - head.base + HEAD)
        before = os.pread(descriptor, 1, first - head.base + HEAD - 1) if first > head.base else b""
    finally:
        os.close(descriptor)
    lost, ends_line = first == kept > since, first == 0 or before == b"\n"
    if first > since and not ends_line:
        data, first, ends_line = *_from_line(data, first), True
    if not head.attempts or head.attempts[-1].start < end:  # otherwise nobody will write the rest
        data = data[: len(data) - _incomplete(data)]
    end = first + len(data)
    dropped = first - since if lost else 0
    text = bytearray(_DROPPED.format(dropped, BOUND).encode() if dropped else b"")
    at = first
    for attempt, after in _with_ends(head.attempts, end):
        if attempt.number <= shown:
            continue
        quiet = attempt.start >= after
        if quiet and attempt.start == 0 and attempt is head.attempts[-1]:
            break  # it may still write something
        shown = attempt.number
        if attempt.start >= first if quiet else after > first:
            here = max(attempt.start, first)
            text += data[at - first : here - first]
            at = here
            if (attempt.start > 0 or not quiet) and (attempt.start >= first or lost):
                ends_line = text.endswith(b"\n") if text else ends_line
                text += (b"" if ends_line else b"\n") + attempt.line()
    return LogText(bytes(text + data[at - first :]), end, shown, dropped)


def _from_line(data: bytes, first: int) -> tuple[bytes, int]:
    """The data from the start of a line on, or of a character where a line is long; and its position."""
    cut = data.find(b"\n", 0, LINE) + 1
    while not cut and data and 0x80 <= data[0] < 0xC0 and len(data) > 1:
        data, first = data[1:], first + 1
    return data[cut:], first + cut


def _incomplete(data: bytes) -> int:
    """How many bytes at the end are the start of a character in UTF-8 whose rest is missing."""
    for length in range(1, min(4, len(data) + 1)):
        byte = data[-length]
        if byte >= 0xC0:
            needed = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return length if length < needed else 0
        if byte < 0x80:
            break
    return 0


def _with_ends(attempts: Sequence[Attempt], end: int) -> Iterator[tuple[Attempt, int]]:
    """Each attempt with the position where its text ends."""
    ends = [*(attempt.start for attempt in attempts[1:]), end]
    return zip(attempts, ends, strict=True) if attempts else iter(())
