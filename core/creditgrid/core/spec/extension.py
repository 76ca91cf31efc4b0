"""Extensions: further values for a sweep's axes, and further included cells.

An extended sweep is one spec with longer axes, which is read, planned and retried like any other. Its cells keep their
numbers: the cells of each earlier form of the spec come first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from creditgrid.core.errors import Fault, SpecError, did_you_mean
from creditgrid.core.spec.axes import expand
from creditgrid.core.spec.faults import pointer
from creditgrid.core.wire import Extension


def parse_extension(document: Any) -> Extension:
    """The extension that a JSON document holds.

    Raises:
        SpecError: with a pointer to each fault.
    """
    if not isinstance(document, dict):
        raise SpecError([Fault("an extension is an object with axes (values by axis) and include (more cells)", "")])
    try:
        return Extension.model_validate(document)
    except ValidationError as error:
        faults = [Fault(item["msg"], pointer(*item["loc"])) for item in error.errors(include_url=False)]
        raise SpecError(faults) from error


def extended(document: Mapping[str, Any], extension: Extension) -> dict[str, Any]:
    """The spec document with the extension's values and cells after its own.

    Raises:
        SpecError: for an axis that the spec does not have, invalid values, and an empty extension; pointers lead into
            the extension.
    """
    axes: dict[str, Any] = dict(document.get("axes") or {})
    faults = []
    for name, more in extension.axes.items():
        where = pointer("axes", name)
        if name not in axes:
            faults.append(Fault(_no_axis(name, axes, document.get("fixed") or {}), where))
            continue
        try:
            axes[name] = [*expand(axes[name]), *(value for _, value in _new_values(document, name, more))]
        except ValueError as error:
            faults.append(Fault(str(error), where))
    if not extension.axes and not extension.include:
        faults.append(Fault("an extension has new values in axes, or cells in include", ""))
    if faults:
        raise SpecError(faults)
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
    faults = [Fault(fault.detail, _extension_pointer(fault.pointer, document, extension)) for fault in error.faults]
    return SpecError(faults)


def _extension_pointer(where: str, document: Mapping[str, Any], extension: Extension) -> str:
    part, *rest = where.split("/")[1:] or [""]
    if part == "axes" and rest and (name := rest[0].replace("~1", "/").replace("~0", "~")) in extension.axes:
        if len(rest) == 1 or not isinstance(extension.axes[name], list):
            return pointer(part, name)
        index = int(rest[1]) - len(expand(document["axes"][name]))
        return pointer(part, name, _new_values(document, name, extension.axes[name])[index][0]) if index >= 0 else ""
    if part == "include" and rest:
        index = int(rest[0]) - len(document.get("include") or [])
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
    return f"this sweep has no axis {name!r}{hint}; it has {', '.join(axes) or 'none'}"
