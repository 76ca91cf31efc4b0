"""The curve of a call: a point for each epoch that its task measures, checked and bounded.

A plugin may yield anything as metrics. What cannot be a point is left out, with a warning in the task's log, and the
call continues. The points are kept until the call ends: with its resume state and its artifacts they outlive the
process, so that an attempt that continues sends them from the first one again, and the table has no gap.
"""

from __future__ import annotations

import logging
import math
import numbers
import operator
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from creditgrid.core.task import Progress
from creditgrid.workers.runner import Advanced, Call, Point

FULL = 10_000
"""So many points of a call are kept; of later ones every 10th, after ten times as many every 100th, and so on."""
NAMES = 50
"""The most metrics of one curve."""
AT_ONCE = 1000
"""The most points in one message, and in the record of an artifact that is not the call's last."""
WARNINGS = 20
"""The most warnings of one curve."""

NOTE = 500
"""Characters of a note that are reported."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_EPOCHS = range(-(2**63), 2**63)

log = logging.getLogger(__name__)


class CallCurve:
    """The progress and the points of one call, and which of them were sent."""

    def __init__(self, call: Call, host: str, device: str) -> None:
        self._call, self._host, self._device = call, host, device
        self._progress = Progress(0, 1, "")
        self._points: list[Point] = []
        self._sent = 0
        self._seen = 0
        self._last = _EPOCHS[0] - 1
        self._restored = self._last  # epochs up to here are known from an earlier attempt
        self._names: dict[str, str] = {}  # the metrics by their name in lower case: SQL knows no difference
        self._warnings: set[str] = set()

    def restore(self, state: Any) -> None:
        """Continue the curve of an earlier attempt: its ``state``, or None for none."""
        if state is None or not state["points"] or state["points"][-1]["epoch"] <= self._last:
            return
        self._points += [Point(**point) for point in state["points"] if point["epoch"] > self._last]
        self._seen, self._last = max(self._seen, state["seen"]), self._points[-1].epoch
        self._restored = self._last
        self._names = {name.lower(): name for point in self._points for name in point.metrics}

    def state(self) -> dict[str, Any] | None:
        """The curve up to here as JSON; None without points."""
        return {"seen": self._seen, "points": [asdict(point) for point in self._points]} if self._points else None

    def record(self, *, complete: bool) -> dict[str, Any]:
        """What the record of an artifact says: the curve up to it. If it is long, only the call's last one has it."""
        state = self.state() if complete or len(self._points) <= AT_ONCE else None
        return {} if state is None else {"curve": state}

    def advanced(self) -> Advanced:
        """How far the call is, with the next points."""
        done, total = _steps(self._progress.done), _steps(self._progress.total)
        if done is None or total is None:
            self._warn("progress is left out: ``done`` and ``total`` must be whole numbers of at most 64 bits")
            done, total = 0, 0
        return Advanced(self._call.id, done, total, _note(self._progress.note), self.unsent())

    def long_rest(self) -> Iterator[Advanced]:
        """What was not sent, except what the last message of the call can hold."""
        while len(self._points) - self._sent > AT_ONCE:
            yield self.advanced()

    def unsent(self) -> Sequence[Point]:
        """The next points to send, ``AT_ONCE`` at the most; they count as sent."""
        points = tuple(self._points[self._sent : self._sent + AT_ONCE])
        self._sent += len(points)
        return points

    def take(self, progress: Progress) -> None:
        """The call advances. A Progress that has metrics adds a point, unless they are none."""
        self._progress = progress
        metrics: Any = progress.metrics
        if not isinstance(metrics, Mapping):
            self._warn(f"metrics are a {type(metrics).__name__}: they must map names to numbers, and are left out")
            return
        if not metrics:
            return
        epoch = self._epoch(progress.done)
        if epoch is None:
            return
        self._last = epoch
        self._seen += 1
        if self._seen > FULL and self._seen % 10 ** (len(str((self._seen - 1) // FULL))):
            self._warn(f"more than {FULL:,} points of one curve: of later ones only every 10th, 100th, … is kept")
            return
        if found := self._checked(metrics):
            self._points.append(Point(epoch, found, time.time(), self._call.attempt, self._host, self._device))

    def _epoch(self, done: Any) -> int | None:
        """The epoch, if it follows the last one."""
        try:
            epoch = operator.index(done)
        except TypeError:
            self._warn(f"a point whose ``done`` is a {type(done).__name__} is left out: it must be a whole number")
            return None
        if epoch not in _EPOCHS:
            self._warn("a point beyond 64 bits is left out")
            return None
        if epoch <= self._last:
            if epoch > self._restored:
                self._warn("a point is left out because it does not come after the last one: ``done`` must increase")
            return None
        return epoch

    def _checked(self, metrics: Mapping[Any, Any]) -> dict[str, float | None]:
        found: dict[str, float | None] = {}
        for number, (name, value) in enumerate(metrics.items()):
            if number >= 2 * NAMES:
                self._warn(f"a point with more than {2 * NAMES} metrics: the rest are left out")
                break
            if self._named(name):
                try:
                    found[name] = _number(value)
                except _NoNumber:
                    self._warn(f"the metric {name} is a {type(value).__name__}: only numbers are kept")
        return found

    def _named(self, name: Any) -> bool:
        """Whether the name can be a metric of this curve."""
        if isinstance(name, str) and self._names.get(name.lower()) == name:
            return True
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            shown = str(name)[:40] if isinstance(name, str) else type(name).__name__
            self._warn(f"the metric {shown!r} is left out: a name is an ASCII identifier of at most 64 characters")
        elif name.lower() in self._names:
            self._warn(f"the metric {name} is left out: it differs from {self._names[name.lower()]} in case alone")
        elif len(self._names) >= NAMES:
            self._warn(f"a curve has at most {NAMES} metrics: others are left out")
        else:
            self._names[name.lower()] = name
            return True
        return False

    def _warn(self, text: str) -> None:
        if text in self._warnings or len(self._warnings) > WARNINGS:
            return
        self._warnings.add(text)
        further = " (further warnings of this curve are left out)" if len(self._warnings) > WARNINGS else ""
        log.warning("curve of %s: %s%s", self._call.kind, text, further)


def _steps(value: Any) -> int | None:
    """A number of steps; None if the value is none."""
    try:
        whole = isinstance(value, numbers.Integral) or not isinstance(value, numbers.Real)
        steps = operator.index(value) if whole else int(float(value))
    except Exception:  # whatever class the value has
        return None
    return steps if steps in _EPOCHS else None


def _note(value: Any) -> str:
    """The start of a note, in characters that JSON can hold; empty for what is no text."""
    return value[:NOTE].encode(errors="replace").decode() if isinstance(value, str) else ""


class _NoNumber(Exception):
    """The value of a metric is not a number."""


def _number(value: Any) -> float | None:
    """The value as a float, None if it is not finite; also of a NumPy number, and of an array or tensor without axes.

    Raises:
        _NoNumber: it is something else. A bool is no number.
    """
    if type(value) is not float:
        if not isinstance(value, numbers.Real) and getattr(value, "shape", None) == ():
            try:
                value = value.item()
            except Exception as error:  # whatever class it has
                raise _NoNumber from error
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise _NoNumber
        try:
            value = float(value)
        except OverflowError:
            return None
        except Exception as error:
            raise _NoNumber from error
    return value if math.isfinite(value) else None
