"""Units as data: what the service's own process knows of brought code, which it never executes.

A process apart imports the code and describes its units. From a description come classes with the same names,
parameters and facts, which compute nothing: columns, schemas and summaries need no more.
"""

from __future__ import annotations

import json
import types
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter
from pydantic.fields import FieldInfo

from creditgrid.core.errors import CodeError
from creditgrid.core.experiment import Column
from creditgrid.core.units.brought import place_of_unit
from creditgrid.core.units.known import BASES, group_of
from creditgrid.core.units.measurement import Measurement
from creditgrid.core.units.method import Method, is_fitted
from creditgrid.core.units.unit import Unit

FACTS: Mapping[str, Sequence[str]] = {
    "methods": ("uses_feedback", "exact", "baseline", "side_by_side"),
    "rules": ("normalises",),
    "networks": (),
    "datasets": ("fingerprint", "image_shape", "num_train", "num_test", "num_classes"),
    "measurements": ("after_step",),
}
"""What the classes of a group declare besides their parameters."""
_TYPES: Mapping[str, Any] = {"number": float, "integer": int, "string": str, "boolean": bool}
_BOUNDS: Mapping[str, str] = {
    "minimum": "ge",
    "exclusiveMinimum": "gt",
    "maximum": "le",
    "exclusiveMaximum": "lt",
    "multipleOf": "multiple_of",
    "minLength": "min_length",
    "maxLength": "max_length",
    "pattern": "pattern",
}
"""By the name in JSON Schema, that in ``Field``."""

_columns: TypeAdapter[dict[str, Column]] = TypeAdapter(dict[str, Column])


def describe(unit: type[Unit]) -> dict[str, Any]:
    """A unit as JSON.

    Raises:
        CodeError: a parameter or a fact cannot be described; the message starts with file and line.
    """
    place, group = place_of_unit(unit), group_of(unit)
    where = f"{place or unit.__name__}: "
    facts = {name: getattr(unit, name, None) for name in FACTS[group]}
    if lacking := [name for name, value in facts.items() if value is None]:
        raise CodeError(f"{where}{unit.name} declares no {' and no '.join(lacking)}")
    found: dict[str, Any] = {
        "group": group,
        "name": unit.name,
        "title": unit.title(),
        "class": unit.__name__,
        "version": unit.version,
        "file": "" if place is None else place.file,
        "line": 0 if place is None else place.line,
        "facts": facts,
        "fitted": issubclass(unit, Method) and is_fitted(unit),
        "parameters": [_parameter(unit, name, where) for name in unit.model_fields],
        "columns": _measured(unit, where) if issubclass(unit, Measurement) else {},
    }
    try:
        return dict(json.loads(json.dumps(found, allow_nan=False)))
    except (TypeError, ValueError) as error:
        raise CodeError(f"{where}{unit.name} declares a value that is no plain one: {error}") from error


def described(description: Mapping[str, Any]) -> type[Unit]:
    """The class that a description stands for. What it computes is not there.

    Raises:
        CodeError: it is no description of this version.
    """
    try:
        base = BASES[description["group"]]
        fields = {item["field"]: _field(item) for item in description["parameters"]}
        facts = {name: tuple(fact) if isinstance(fact, list) else fact for name, fact in description["facts"].items()}
        body = {
            **facts,
            **{name: info for name, (_, info) in fields.items()},
            "__annotations__": {name: annotation for name, (annotation, _) in fields.items()},
            "__doc__": description["title"],
            "__module__": __name__,
            "name": description["name"],
            "version": description["version"],
        }
        if description["fitted"]:
            body["fit"] = _absent
        if issubclass(base, Measurement):
            body["columns"] = _columns.validate_python(description["columns"])
    except (KeyError, TypeError, ValueError) as error:
        raise CodeError(f"the description of the code cannot be read: {error!r}: send the code again") from error
    made: type[Unit] = types.new_class(description["class"], (base,), exec_body=lambda space: space.update(body))
    return made


def schema_of(description: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of a unit as JSON Schema, by their names in specs."""
    return {item["name"]: item["schema"] for item in description["parameters"]}


def _absent(*_: object) -> Any:
    raise CodeError("this process knows the unit by its description, and cannot compute with it")


def _measured(unit: type[Measurement], where: str) -> dict[str, Any]:
    columns = getattr(unit, "columns", None)
    if not isinstance(columns, Mapping) or not columns:
        raise CodeError(f"{where}{unit.name} declares no columns: a measurement has at least one")
    for name, column in columns.items():
        if not isinstance(column, Column):
            raise CodeError(f"{where}the column {name!r} of {unit.name} is no Column")
    return {name: {"type": column.type, "description": column.description} for name, column in columns.items()}


def _parameter(unit: type[Unit], name: str, where: str) -> dict[str, Any]:
    info = unit.model_fields[name]
    said = f"{where}the parameter {info.alias or name!r} of {unit.name}"
    if info.default_factory is not None:
        raise CodeError(f"{said} has a default_factory: give a default")
    required = info.is_required()
    try:
        schema = TypeAdapter(_annotated(info)).json_schema()
        described = {"field": name, "name": info.alias or name, "schema": schema, "required": required}
        if not required:
            schema["default"] = info.default
        schema["description"] = info.description or ""
        annotation, _ = _field(described)
    except Exception as error:
        raise CodeError(f"{said} cannot be a column: {error}; use float, int, str, bool or a Literal") from error
    if annotation != info.annotation:
        raise CodeError(
            f"{said} is of the type {info.annotation}, which cannot be a column: use float, int, str, bool or a Literal"
        )
    return described


def _annotated(info: FieldInfo) -> Any:
    return info.annotation if not info.metadata else Annotated[(info.annotation, *info.metadata)]


def _field(item: Mapping[str, Any]) -> tuple[Any, FieldInfo]:
    """The annotation and the field of a parameter."""
    schema = dict(item["schema"])
    options: dict[str, Any] = {"description": schema["description"]}
    if item["name"] != item["field"]:
        options["alias"] = item["name"]
    if not item["required"]:
        options["default"] = schema["default"]
    optional = "anyOf" in schema
    if optional:
        inner, *rest = [part for part in schema["anyOf"] if part != {"type": "null"}]
        if rest:
            raise ValueError("it may have several types")
        schema = dict(inner)
    annotation = _annotation(schema)
    options |= {bound: schema[name] for name, bound in _BOUNDS.items() if name in schema}
    field: FieldInfo = Field(**options)
    return (annotation | None if optional else annotation), field


def _annotation(schema: Mapping[str, Any]) -> Any:
    if "const" in schema:
        return Literal[schema["const"]]
    if "enum" in schema:
        return Literal[tuple(schema["enum"])]
    return _TYPES[schema["type"]]
