"""What was tried, how it was answered, and what fell short."""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from dataclasses import dataclass, field

SHOWN = 8
"""How many shortcomings of one kind are kept with their details; all are counted."""


@dataclass(frozen=True, slots=True)
class Shortcoming:
    """Something that must not happen."""

    corpus: str
    kind: str
    what: str

    def __str__(self) -> str:
        return f"{self.corpus}: {self.kind}: {self.what}"


@dataclass(slots=True)
class Line:
    """The attempts of one corpus."""

    attempts: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    slowest_name: str = ""
    short: int = 0


class Tally:
    """Attempts by corpus; threads may share it.

    Args:
        patience: by how much answers may exceed their time limits, on a machine that others disturb.
    """

    def __init__(self, patience: float = 1.0) -> None:
        self.patience = patience
        self.lines: dict[str, Line] = defaultdict(Line)
        self.shortcomings: list[Shortcoming] = []
        self.counted: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()

    def attempt(self, corpus: str, name: str, answer: int | str, seconds: float, times: int = 1) -> None:
        """Count an attempt with its answer: a status, or a word such as ``closed``."""
        with self._lock:
            line = self.lines[corpus]
            line.attempts += times
            line.answers[str(answer)] += times
            if seconds > line.slowest:
                line.slowest, line.slowest_name = seconds, name

    def fell_short(self, corpus: str, kind: str, what: str) -> None:
        """Record what must not happen."""
        with self._lock:
            self.lines[corpus].short += 1
            self.counted[corpus, kind] += 1
            if self.counted[corpus, kind] <= SHOWN:
                self.shortcomings.append(Shortcoming(corpus, kind, what))

    @property
    def attempts(self) -> int:
        return sum(line.attempts for line in self.lines.values())
