"""A unit: one part of the science that is one class in one file, shipped or brought.

A unit is a pydantic model whose fields are its parameters: typed, bounded, each with a description that gives its unit.
An instance is the unit with one setting of them. Parameters belong to their unit: in a spec, they apply to cells that
choose the unit, and are refused for others. The name of a parameter in specs and in rows is the alias of its field, or
the field's own name where it has no alias. Planning loads units, so those that ship import no torch at module level.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from functools import cache
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict
from pydantic.fields import FieldInfo

NAME = r"[a-z][a-z0-9_]{0,62}"


class Unit(BaseModel):
    """Base of all units.

    ``name`` is what a spec writes. Raise ``version`` when equal parameters give another result than before: it is part
    of the keys of the tasks that the unit computes. (Of code that is sent with a sweep, the content is in the keys.)
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, populate_by_name=True)

    name: ClassVar[str]
    version: ClassVar[int] = 1

    @classmethod
    def title(cls) -> str:
        """The first sentence of the docstring."""
        return (inspect.getdoc(cls) or cls.name).splitlines()[0].split(". ")[0].rstrip(".")

    @classmethod
    def of(cls, parameters: Mapping[str, Any]) -> Self:
        """The unit with its own parameters among ``parameters``, by their names in specs; null is the default.

        Raises:
            pydantic.ValidationError: a value is not valid, or one without a default is missing.
        """
        own = parameters_of(cls)
        return cls.model_validate({name: parameters[name] for name in own if parameters.get(name) is not None})


@cache
def parameters_of(unit: type[Unit]) -> Mapping[str, FieldInfo]:
    """The parameters of a unit, by their names in specs."""
    return {field.alias or name: field for name, field in unit.model_fields.items()}


def unfit_unit(unit: type[Unit]) -> str | None:
    """Why a class cannot be a unit; None if it can."""
    name = getattr(unit, "name", None)
    if not isinstance(name, str) or not re.fullmatch(NAME, name):
        return f'{unit.__name__} needs a name in lower_case_with_underscores, such as name = "linear"'
    if type(unit.version) is not int or unit.version < 1:
        return f"the version of {name} is {unit.version!r}, and must be a whole number from 1"
    decorators = unit.__pydantic_decorators__
    if decorators.field_validators or decorators.validators or decorators.model_validators:
        return f"{unit.__name__} has validators, which are not run when a spec is read: use the bounds of Field"
    if taken := sorted(unit.model_fields.keys() & {"name", "version"}):
        return f"the field {taken[0]!r} of {unit.__name__} hides what every unit declares: rename it"
    for parameter, field in parameters_of(unit).items():
        if not re.fullmatch(NAME, parameter):
            return f"the parameter {parameter!r} of {name} is not lower_case_with_underscores"
        if not field.description:
            return f"the parameter {parameter!r} of {name} needs a description, with its unit: Field(…, description=…)"
    return None
