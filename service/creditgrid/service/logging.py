"""The form of the log: one line an event on stderr, as JSON for machines or coloured for people.

No one can fill a disk with it: what repeats too fast is left out, and the next line like it says how many were.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Mapping
from typing import Any, Literal

import structlog

CHATTY = ("uvicorn.error", "httpx", "sqlalchemy", "alembic", "asyncio")
"""Libraries that log each of their steps; only their warnings are kept."""
MAX_KINDS = 500
"""Kinds of lines that are counted apart; beyond that, counting starts again."""


class RateLimit(logging.Filter):
    """Passes of each kind of line ``burst`` at once, and ``rate`` a second later on; fewer of warnings and errors.

    Lines are of one kind that one logger writes at one level with one event, or with one start of the first line.
    """

    LINES = 1000.0, 100.0
    WARNINGS = 50.0, 2.0  # a traceback has kilobytes

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._kinds: dict[tuple[str, int, str], _Kind] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to write the record; it then says how many were left out before it."""
        event = str(record.msg["event"] if isinstance(record.msg, Mapping) else record.msg).partition("\n")[0][:60]
        burst, rate = self.WARNINGS if record.levelno >= logging.WARNING else self.LINES
        with self._lock:
            if len(self._kinds) > MAX_KINDS:
                self._kinds.clear()
            kind = self._kinds.setdefault((record.name, record.levelno, event), _Kind(burst, record.created))
            left_out = kind.take(record.created, burst, rate)
        if left_out and isinstance(record.msg, Mapping):
            record.msg = {**record.msg, "left_out": left_out}
        elif left_out:
            record.msg = f"{record.msg} ({left_out:,} such lines were left out)"
        return left_out is not None


class _Kind:
    """The lines of one kind that may still be written now, and how many were left out."""

    def __init__(self, allowed: float, at: float) -> None:
        self._allowed, self._at, self._left_out = allowed, at, 0

    def take(self, at: float, burst: float, rate: float) -> int | None:
        """How many lines were left out before this one; None if this one is too."""
        self._allowed = min(burst, self._allowed + rate * max(0.0, at - self._at))
        self._at = at
        if self._allowed < 1:
            self._left_out += 1
            return None
        self._allowed -= 1
        left_out, self._left_out = self._left_out, 0
        return left_out


def configure_logging(form: Literal["auto", "json", "console"]) -> None:
    """Send the logs of structlog and of the standard library to stderr in one form."""
    if form == "auto":
        form = "console" if sys.stderr.isatty() else "json"
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if form == "json":
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
    handler.addFilter(RateLimit())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
