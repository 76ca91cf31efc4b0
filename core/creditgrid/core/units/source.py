"""Where a unit is written: the file and line that errors name."""

from __future__ import annotations

import inspect
import traceback
from typing import Any, NamedTuple


class Place(NamedTuple):
    """A line of a file, from 1."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


def place_of(written: type | Any) -> Place | None:
    """Where a class, a function or the function below a decorator starts; None if its source is not there."""
    if isinstance(written, type):  # a subclass inherits the function that its base was made from
        written = written.__dict__["__wrapped__"].__func__ if "__wrapped__" in vars(written) else written
    else:
        written = inspect.unwrap(written)
    try:
        file = inspect.getsourcefile(written)
        _, line = inspect.findsource(written)
    except (OSError, TypeError):
        return None
    return None if file is None else Place(file, line + 1)


def place_of_error(error: BaseException, *files: str) -> Place | None:
    """The innermost line of ``files`` that an exception has passed through; of a syntax error, its own line."""
    if isinstance(error, SyntaxError) and error.filename in files and error.lineno:
        return Place(error.filename, error.lineno)
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename in files and frame.lineno:
            return Place(frame.filename, frame.lineno)
    return None
