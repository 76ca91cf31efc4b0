"""The experiments with the units of brought code: made from its files where the code may run, or from a description."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from creditgrid.core.errors import CodeError, PluginError
from creditgrid.core.experiments.registry import Registry, registry, registry_with
from creditgrid.core.units import brought
from creditgrid.core.units.code import Files, sha256_of
from creditgrid.core.units.description import described
from creditgrid.core.units.known import installed
from creditgrid.core.units.unit import Unit

MOST_KEPT = 16
"""Registries with code that a process keeps; the one that was not used for the longest time is dropped."""

_kept: OrderedDict[str, Registry] = OrderedDict()
_lock = threading.RLock()


def registry_of(files: Files, sha256: str | None = None) -> Registry:
    """The experiments with the units of these files, which are imported, once a process.

    Raises:
        CodeError: the code cannot be used; the message starts with the file and the line.
    """
    sha256 = sha256 or sha256_of(files)
    with _lock:
        if sha256 not in _kept:
            _kept[sha256] = registry_with_brought(brought.load(files, sha256), sha256)
        _kept.move_to_end(sha256)
        while len(_kept) > MOST_KEPT:
            _kept.popitem(last=False)
        return _kept[sha256]


def described_registry(descriptions: Sequence[Mapping[str, Any]], sha256: str) -> Registry:
    """The experiments with the units that descriptions stand for: it executes nothing.

    Raises:
        CodeError: the code does not fit to what is installed here now.
    """
    return registry_with_brought([described(description) for description in descriptions], sha256)


def registry_with_brought(units: Sequence[type[Unit]], sha256: str) -> Registry:
    """The experiments with these units beside the installed ones.

    Raises:
        CodeError: a unit has the name of another, or a parameter that does not fit to others.
    """
    try:
        found = registry_with(installed().with_brought(units, sha256))
        why = _broken(found)
    except PluginError as error:
        why = str(error)
    if why is None:
        return found
    raise CodeError(f"{_culprit(units, sha256)}{why}")


def _broken(found: Registry) -> str | None:
    """Why an experiment cannot be used with the units, although it can be without them."""
    for name, why in found.broken.items():
        if name in registry().experiments:
            return f"the experiment {name!r} cannot be used with the code: {why}"
    return None


def _culprit(units: Sequence[type[Unit]], sha256: str) -> str:
    """The place of the first unit with which those before it cannot be used."""
    for count in range(1, len(units) + 1):
        try:
            if _broken(registry_with(installed().with_brought(units[:count], sha256))) is None:
                continue
        except PluginError:
            pass
        place = brought.place_of_unit(units[count - 1])
        return "" if place is None else f"{place}: "
    return ""
