"""Identity: the only place where keys are made.

A key says *what* is computed and never where: it is the SHA-256 of the canonical JSON of (kind, kind version,
parameters, parents' keys). A value without one exact JSON text is an error; nothing falls back to ``str``.
"""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any

_REFUSED = "cannot be part of an identity: only str, int, bool, null, finite floats, lists and string-keyed objects can"


def canonical_json(value: Any) -> str:
    """The one JSON text of ``value``: sorted keys, no spaces, shortest float digits, ASCII only.

    Raises:
        TypeError: for any other type, and for keys that are not strings.
        ValueError: for NaN and infinities.
    """
    _check(value)
    return _ENCODER.encode(value)


def digest(value: Any) -> str:
    """SHA-256 of the canonical JSON of ``value``, 64 hexadecimal digits."""
    return hashlib.sha256(canonical_json(value).encode("ascii")).hexdigest()


_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
_EXACT = frozenset((str, int, bool, type(None)))


def _check(value: Any) -> None:
    # Exact types: a subclass (numpy.float64, an enum) may print differently in the next release.
    kind = type(value)
    if kind in _EXACT:
        return
    if kind is float:
        if not math.isfinite(value):
            raise ValueError(f"{value!r} {_REFUSED}")
    elif kind is dict:
        for name in value:
            if type(name) is not str:
                raise TypeError(f"the object key {name!r} {_REFUSED}")
        for item in value.values():
            if type(item) not in _EXACT:  # most are exact, and a grid of a million cells is hashed here
                _check(item)
    elif kind is list or kind is tuple:
        for item in value:
            _check(item)
    else:
        raise TypeError(f"{value!r} of type {kind.__name__} {_REFUSED}")
