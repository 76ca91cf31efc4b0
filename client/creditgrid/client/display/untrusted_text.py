"""Text that tasks print, which must not control the terminal that shows it."""

from __future__ import annotations

import re

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def harmless(text: str) -> str:
    """The text with its control characters written out, apart from line ends and tabs.

    A carriage return starts a line, so that nothing is hidden below what comes after it.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
