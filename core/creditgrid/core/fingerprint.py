"""Identity: the only place where keys are made.

A key says *what* is computed and never where: it is the SHA-256 of the canonical JSON of (kind, kind version,
parameters, parents' keys). A value without one exact JSON text is an error; nothing falls back to ``str``.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import operator
from collections.abc import Mapping
from json.encoder import encode_basestring_ascii
from typing import Any, NamedTuple

KEPT = 64
"""Objects of different names that are kept; a grid's cells have few sets of names."""
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


class Keys:
    """Makes the keys of one kind's tasks.

    The cells of a grid differ in few parameters, so the text of each is kept until its value is another object. The key
    is the digest of the whole payload.
    """

    def __init__(self, kind: str) -> None:
        self._start = f'{{"kind":{canonical_json(kind)},"params":'
        self._params, self._parents = ObjectText(), ObjectText()

    def key(self, version: int, params: Mapping[str, Any], parents: Mapping[str, str]) -> tuple[str, str]:
        """The key of the task with this version, these parameters and its parents' keys by role, and the parameters'
        canonical JSON.

        Raises:
            TypeError: as ``canonical_json``.
            ValueError: as ``canonical_json``.
        """
        own = self._params.of(params)
        text = f'{self._start}{own},"parents":{self._parents.of(parents)},"version":{_text(version)}}}'
        return hashlib.sha256(text.encode("ascii")).hexdigest(), own


class ObjectText:
    """The canonical JSON of one object after another. Each is compared with the last one that has the same names, and
    only what changed is written again. Several threads may use it: they replace what is kept as a whole."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, ...], _Kept] = {}

    def of(self, value: Mapping[str, Any]) -> str:
        """The same text as ``canonical_json(dict(value))``."""
        names, items = tuple(value), tuple(value.values())
        kept = self._kept.get(names)
        if kept is None:
            if len(self._kept) >= KEPT:
                self._kept.clear()
            kept = _Kept.of(names)
        changed = list(itertools.compress(range(len(items)), map(operator.is_not, items, kept.items)))
        if not changed:
            return f"{{{','.join(kept.texts)}}}"
        texts = kept.texts.copy()
        constant = True
        for index in changed:
            item = items[index]
            texts[kept.places[index]] = kept.starts[index] + _text(item)
            constant = constant and type(item) in _CONSTANT
        if not constant:  # a list may hold other values the next time
            items = tuple(item if type(item) in _CONSTANT else _NEVER for item in items)
        self._kept[names] = _Kept(items, kept.places, kept.starts, texts)
        return f"{{{','.join(texts)}}}"


class _Kept(NamedTuple):
    """What is kept of an object: by member its value, its place in the sorted text, and its name as text."""

    items: tuple[Any, ...]
    places: tuple[int, ...]
    starts: tuple[str, ...]
    texts: list[str]  # of the members, in the order of their names

    @classmethod
    def of(cls, names: tuple[str, ...]) -> _Kept:
        """Nothing but the names."""
        _check(dict.fromkeys(names))
        order = {name: place for place, name in enumerate(sorted(names))}
        starts = tuple(f"{canonical_json(name)}:" for name in names)
        return cls((_NEVER,) * len(names), tuple(order[name] for name in names), starts, [""] * len(names))


def _text(value: Any) -> str:
    kind = type(value)
    if kind is str:
        return encode_basestring_ascii(value)
    if kind is float and math.isfinite(value):
        return float.__repr__(value)
    if kind is int:
        return int.__repr__(value)
    return canonical_json(value)


_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
_EXACT = frozenset((str, int, bool, type(None)))
_CONSTANT = _EXACT | {float}
_NEVER = object()
"""Stands for a value that is written again each time."""


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
