"""Faults of a spec: pointers to them, the values in their messages, and how many are reported."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from creditgrid.core.errors import Fault, SpecError

MAX_FAULTS = 20
"""At most this many faults are reported; one more says how many were left out."""
MAX_SHOWN = 80
"""Characters of a value in an error message."""
MAX_STEP = 200
"""Characters of one step of a pointer."""


class Faults:
    """The first ``MAX_FAULTS`` faults of a spec, and the number of the others, whose messages are never made."""

    def __init__(self) -> None:
        self.first: list[Fault] = []
        self.more = 0

    def __len__(self) -> int:
        return len(self.first) + self.more

    def add(self, where: Sequence[str | int], detail: str | Callable[[], str]) -> None:
        """Note a fault at the place with these steps."""
        if len(self.first) < MAX_FAULTS:
            self.first.append(Fault(detail if isinstance(detail, str) else detail(), pointer(*where)))
        else:
            self.more += 1

    def refuse(self) -> None:
        """Raise SpecError if there is a fault."""
        if self.first:
            raise SpecError([*self.first, *([Fault(f"and {self.more:,} more", "")] if self.more else [])])


def bounded(faults: list[Fault]) -> list[Fault]:
    """The first ``MAX_FAULTS`` faults, and how many more there are."""
    more = len(faults) - MAX_FAULTS
    return faults if more <= 0 else [*faults[:MAX_FAULTS], Fault(f"and {more:,} more", "")]


def pointer(*parts: str | int) -> str:
    """The RFC 6901 JSON pointer of these steps. It ends before a step that is longer than any name in a spec."""
    steps = itertools.takewhile(lambda step: len(step) <= MAX_STEP, map(str, parts))
    return "".join("/" + step.replace("~", "~0").replace("/", "~1") for step in steps)


def shown(value: Any) -> str:
    """The value as an error message shows it: at most ``MAX_SHOWN`` characters, however large it is."""
    text = ""
    for piece in _pieces(value):
        text += piece
        if len(text) > MAX_SHOWN:
            return text[: MAX_SHOWN - 3] + "..."
    return text


def _pieces(value: Any) -> Iterator[str]:
    """The text of ``repr(value)``, piece by piece."""
    if isinstance(value, str):
        yield repr(value[: MAX_SHOWN + 1])
    elif isinstance(value, dict):
        yield "{"
        for number, (name, item) in enumerate(value.items()):
            yield ", " if number else ""
            yield from _pieces(name)
            yield ": "
            yield from _pieces(item)
        yield "}"
    elif isinstance(value, list | tuple):
        yield "[" if isinstance(value, list) else "("
        for number, item in enumerate(value):
            yield ", " if number else ""
            yield from _pieces(item)
        yield "]" if isinstance(value, list) else ",)" if len(value) == 1 else ")"
    else:
        yield repr(value)
