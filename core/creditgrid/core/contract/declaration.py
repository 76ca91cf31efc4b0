"""Checks of every unit: how it is declared, and that its parameters survive the way through specs and keys."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from creditgrid.core.contract.checks import Checks
from creditgrid.core.contract.settings import choices, small, valid
from creditgrid.core.rows import column_type
from creditgrid.core.units.known import group_of
from creditgrid.core.units.unit import Unit, parameters_of, unfit_unit


@dataclass
class Declared:
    """A unit as it is declared."""

    written: type[Unit]

    def __post_init__(self) -> None:
        self.name = str(getattr(self.written, "name", self.written.__name__))
        self.group = group_of(self.written)


CHECKS: Checks[Declared] = Checks()


@CHECKS.add("it is declared well", why="A spec names it, and people read what it says of itself.", basic=True)
def declared(subject: Declared) -> Iterator[str]:
    unit = subject.written
    if why := unfit_unit(unit):
        yield why
        return
    if not (unit.__doc__ or "").strip() or unit.__doc__ == unit.__base__.__doc__:
        yield "it has no docstring; its first line is its title"


@CHECKS.add("parameters can be columns", why="Every parameter is a column of the rows.", basic=True)
def columns(subject: Declared) -> Iterator[str]:
    for name, field in parameters_of(subject.written).items():
        try:
            column_type(field.annotation)
        except TypeError as error:
            yield f"{name}: {error}"


@CHECKS.add("defaults are valid", why="A cell without the parameter has its default.", basic=True)
def defaults(subject: Declared) -> Iterator[str]:
    for name, field in parameters_of(subject.written).items():
        if not field.is_required() and not valid(field, field.get_default(call_default_factory=True)):
            yield f"the default {field.default!r} of {name} is not a value that {name} may have"
        if field.default_factory is not None:
            yield f"{name} has a default_factory; give it a plain default"


@CHECKS.add(
    "parameters round-trip", why="Keys and rows hold the values, and a worker makes the unit from them.", basic=True
)
def round_trip(subject: Declared) -> Iterator[str]:
    unit = subject.written
    for setting in (small(unit), *choices(unit)):
        if unit.model_validate_json(setting.model_dump_json()) != setting:
            yield f"its JSON {setting.model_dump_json()} gives another setting"
        values: dict[str, Any] = {name: getattr(setting, field_name(unit, name)) for name in parameters_of(unit)}
        if unit.of(values) != setting:
            yield f"of({values!r}) gives another setting"


def field_name(unit: type[Unit], parameter: str) -> str:
    """The name of the field that a spec calls ``parameter``."""
    return next(name for name, field in unit.model_fields.items() if (field.alias or name) == parameter)
