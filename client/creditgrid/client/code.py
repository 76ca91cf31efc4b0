"""Code that is sent with a sweep: a file, a folder, or units that are written in a notebook."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from creditgrid.client.notebook import NAME, notebook_text
from creditgrid.core.units.code import Files, checked, read

Code: TypeAlias = "str | Path | type | Callable[..., Any] | Sequence[type | Callable[..., Any]]"
"""The path of a Python file or of a folder; or a unit, or several, of a notebook."""


def files_of(code: Code) -> Files:
    """The files to send.

    Raises:
        CodeError: they cannot be sent; the message says why.
    """
    if isinstance(code, str | Path):
        return read(Path(code))
    units: Sequence[object] = code if isinstance(code, Sequence) else [code]
    return checked({NAME: notebook_text(units).encode()})
