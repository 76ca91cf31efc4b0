"""Extensions: further values for a sweep's axes, and further included cells.

An extended sweep is one spec with longer axes, which is read, planned and retried like any other. Its cells keep their
numbers: the cells of each earlier form of the spec come first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from pydantic import ValidationError

from creditgrid.core.errors import Fault, SpecError, did_you_mean
from creditgrid.core.spec.axes import MAX_VALUES, expand, size
from creditgrid.core.spec.faults import Faults, pointer, shown
from creditgrid.core.wire import Extension


def parse_extension(document: Any) -> Extension:
    """The extension that a JSON document holds.

    Raises:
        SpecError: with a pointer to each fault.
    """
    if not isinstance(document, dict):
        raise SpecError([Fault("an extension is an object with axes (values by axis) and include (more cells)", "")])
    faults = Faults()
    try:
        return Extension.model_validate(document)
    except ValidationError as error:
        for item in error.errors(include_url=False, include_context=False, include_input=False):
            faults.add(item["loc"], item["msg"])
        faults.refuse()
        raise


def extended(document: Mapping[str, Any], extension: Extension) -> dict[str, Any]:
    """The spec document with the extension's values and cells after its own.

    Raises:
        SpecError: for an axis that the spec does not have, invalid values, and an empty extension; pointers lead into
            the extension.
    """
    axes: dict[str, Any] = dict(document.get("axes") or {})
    faults = Faults()
    sizes: dict[str, int] = {}
    for name, more in extension.axes.items():
        if name not in axes:
            faults.add(("axes", name), partial(_no_axis, name, axes, document.get("fixed") or {}))
            continue
        try:
            sizes[name] = size(more) + size(axes[name])
        except ValueError as error:
            faults.add(("axes", name), str(error))
    if not extension.axes and not extension.include:
        faults.add((), "an extension has new values in axes, or cells in include")
    if (total := sum(sizes.values())) > MAX_VALUES:
        faults.add(("axes",), f"the axes would have {total:,} values in all; a sweep has at most {MAX_VALUES:,}")
    faults.refuse()
    for name, more in extension.axes.items():
        axes[name] = [*expand(axes[name]), *(value for _, value in _new_values(document, name, more))]
    include = [*(document.get("include") or []), *extension.include]
    return {**document, "axes": axes, **({"include": include} if include else {})}


def forms(document: Mapping[str, Any], extensions: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The spec as it was submitted, and after each extension; the last is the present one."""
    found = [document]
    for extension in extensions:
        found.append(extended(found[-1], Extension.model_validate(extension)))
    return found


def in_extension(error: SpecError, document: Mapping[str, Any], extension: Extension) -> SpecError:
    """The faults of an extended spec; the pointers to the extension's values lead into the extension."""
    places = _Places(document, extension)
    return SpecError([Fault(fault.detail, places.of(fault.pointer)) for fault in error.faults])


class _Places:
    """Where an extension gives what an extended spec has."""

    def __init__(self, document: Mapping[str, Any], extension: Extension) -> None:
        self._document, self._extension = document, extension
        self._new: dict[str, list[int]] = {}  # by axis: the indices of its new values in the extension

    def of(self, where: str) -> str:
        """The pointer into the extension for one into the extended spec; to all of it for what it does not give."""
        part, *rest = where.split("/")[1:] or [""]
        axes = self._extension.axes
        if part == "axes" and rest and (name := rest[0].replace("~1", "/").replace("~0", "~")) in axes:
            if len(rest) == 1 or not isinstance(axes[name], list):
                return pointer(part, name)
            index = int(rest[1]) - size(self._document["axes"][name])
            if name not in self._new:
                self._new[name] = [place for place, _ in _new_values(self._document, name, axes[name])]
            return pointer(part, name, self._new[name][index]) if index >= 0 else ""
        if part == "include" and rest:
            index = int(rest[0]) - len(self._document.get("include") or [])
            return "/".join(["", part, str(index), *rest[1:]]) if index >= 0 else ""
        return ""


def _new_values(document: Mapping[str, Any], name: str, more: Any) -> list[tuple[int, Any]]:
    """The values that the axis does not have yet, with their index in ``more``; all values of a zipped axis."""
    values = list(enumerate(expand(more)))
    if any(name in group for group in document.get("zip") or ()):
        return values
    there = {_spelling(value) for value in expand(document["axes"][name])}
    return [(index, value) for index, value in values if _spelling(value) not in there]


def _spelling(value: Any) -> str:
    # 1 and 1.0 are one value of an axis of numbers.
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return repr(float(value) if number and abs(value) < 2**53 else value)


def _no_axis(name: str, axes: Mapping[str, Any], fixed: Mapping[str, Any]) -> str:
    if name in fixed:
        return (
            f"{name} is fixed in this sweep, so all cells have one value; submit another sweep with more values (it "
            "reuses the results of this one), or add cells by include"
        )
    hint = did_you_mean(name, axes, " (did you mean {}?)")
    return f"this sweep has no axis {shown(name)}{hint}; it has {', '.join(axes) or 'none'}"
