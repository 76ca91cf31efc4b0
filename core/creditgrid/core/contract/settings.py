"""Settings of a unit to check it with: small ones, and one for each value of a choice."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from typing import Annotated, Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from creditgrid.core.units.unit import Unit, parameters_of

FEW = 2
"""Epochs and steps of a fit in a check."""
LONG = ("epoch", "step", "iteration")
"""A whole number with one of these in its name says how long a fit takes."""
_TRIED = (0.1, 0.5, 1, 1.0, 2, 2.0, 10, 10.0, 100, 0, 0.0, -1, -1.0, True, "a")

U = TypeVar("U", bound=Unit)


def small(unit: type[U]) -> U:
    """The unit at its defaults, with short fits; parameters without a default get a value that is valid.

    Raises:
        pydantic.ValidationError: no value was found for a parameter without a default.
    """
    return unit.of(_small(unit))


def choices(unit: type[U]) -> Iterator[U]:
    """The small setting with each other value of a Literal or a flag."""
    base = _small(unit)
    for name, field in parameters_of(unit).items():
        for value in _alternatives(field.annotation):
            if value != base.get(name, field.default):
                yield unit.of({**base, name: value})


def valid(field: FieldInfo, value: Any) -> bool:
    """Whether a parameter may have the value."""
    annotation: Any = Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
    try:
        TypeAdapter(annotation, config=ConfigDict(strict=True, allow_inf_nan=False)).validate_python(value)
    except ValidationError:
        return False
    return True


def sample(field: FieldInfo) -> Any:
    """A value that a parameter may have; None if none of those tried is one."""
    tried = (*_alternatives(field.annotation), *_TRIED)
    return next((value for value in tried if valid(field, value)), None)


def _small(unit: type[Unit]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, field in parameters_of(unit).items():
        if field.annotation is int and any(word in name for word in LONG) and valid(field, FEW):
            values[name] = FEW
        elif field.is_required() and (found := sample(field)) is not None:
            values[name] = found
    return values


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    if annotation is bool:
        return (False, True)
    return typing.get_args(annotation) if typing.get_origin(annotation) is typing.Literal else ()
