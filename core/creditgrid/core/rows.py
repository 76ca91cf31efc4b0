"""Rows of the results table: their columns, their types, and how numbers that are not finite are stored.

A row is one cell's result: the cell's key, every parameter as a typed column, the measured columns, and provenance.
A measured float that is NaN or infinite is stored as null with ``diverged`` true, so that it is never the best value.
"""

from __future__ import annotations

import math
import numbers
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from creditgrid.core.experiment import ColumnType, Experiment

if TYPE_CHECKING:
    import pyarrow as pa

LEADING: Mapping[str, ColumnType] = {"sweep": "string", "cell": "string", "experiment": "string"}
PROVENANCE: Mapping[str, ColumnType] = {
    "diverged": "bool",
    "task": "string",
    "parents": "string",
    "kind_version": "int64",
    "parent_versions": "string",
    "attempt": "int64",
    "started_at": "timestamp",
    "seconds": "float64",
    "device": "string",
    "host": "string",
    "torch": "string",
    "version": "string",
    "commit": "string",
    "dirty": "bool",
}
RESERVED = frozenset(LEADING) | frozenset(PROVENANCE)


def columns(experiment: Experiment) -> dict[str, ColumnType]:
    """Every column of the experiment's rows, in order, with its type.

    Raises:
        TypeError: for a parameter that cannot be a column.
    """
    parameters = {name: column_type(field.annotation) for name, field in experiment.params.model_fields.items()}
    measured = {name: column.type for name, column in experiment.columns.items()}
    return {**LEADING, **parameters, **measured, **PROVENANCE}


def schema(experiment: Experiment) -> pa.Schema:
    """The Arrow schema of the experiment's rows."""
    return _arrow(columns(experiment))


def common_schema() -> pa.Schema:
    """The columns that rows of every experiment have. Rows from before one of them was introduced have null in it."""
    return _arrow({**LEADING, **PROVENANCE})


def _arrow(columns: Mapping[str, ColumnType]) -> pa.Schema:
    import pyarrow as pa

    arrow = {
        "float64": pa.float64(),
        "int64": pa.int64(),
        "string": pa.string(),
        "bool": pa.bool_(),
        "timestamp": pa.timestamp("us", tz="UTC"),
    }
    return pa.schema([(name, arrow[kind]) for name, kind in columns.items()])


def table(
    experiment: Experiment,
    rows: Sequence[Mapping[str, Any]],
    given: Mapping[str, Sequence[Any]] | None = None,
    constant: Mapping[str, Any] | None = None,
) -> pa.Table:
    """Rows as an Arrow table of the experiment's schema.

    Args:
        rows: columns of each row; those that a row lacks are null.
        given: columns with one value for each row.
        constant: columns that are the same in all rows.

    Raises:
        ValueError: for a column that the experiment does not have, or a value of another type.
    """
    import pyarrow as pa

    given, constant, wanted = given or {}, constant or {}, schema(experiment)
    named = set[str]().union(*rows)
    if unknown := (named | given.keys() | constant.keys()) - set(wanted.names):
        raise ValueError(f"{experiment.name} yields columns it does not declare: {', '.join(sorted(unknown))}")
    diverged = _Diverged(len(rows))
    arrays: dict[str, pa.Array] = {}
    try:
        for field in wanted:
            name, kind = field.name, field.type
            if name in named:
                values = [row.get(name) for row in rows]
                arrays[name] = diverged.finite(values, kind) if name in experiment.columns else pa.array(values, kind)
            elif name in given:
                arrays[name] = pa.array(given[name], kind)
            else:
                arrays[name] = pa.repeat(pa.scalar(constant.get(name), kind), len(rows))
    except _Fraction:
        raise ValueError(f"a row of {experiment.name} has a fraction in the whole-number column {name}") from None
    except (pa.ArrowException, OverflowError) as error:
        raise ValueError(f"a row of {experiment.name} does not fit its columns: {error}") from error
    return pa.table({**arrays, "diverged": diverged.marks()}, schema=wanted)


class _Fraction(Exception):
    """A fraction in a column of whole numbers: Arrow would drop it."""


class _Diverged:
    """Which rows have a measured number that is not finite."""

    def __init__(self, rows: int) -> None:
        import pyarrow as pa

        self._marks = pa.repeat(pa.scalar(False), rows)

    def marks(self) -> pa.Array:
        """The column ``diverged``."""
        return self._marks

    def finite(self, values: Sequence[Any], kind: pa.DataType) -> pa.Array:
        """A measured column, with null for each number that is not finite."""
        import pyarrow as pa
        import pyarrow.compute as pc

        if kind != pa.float64():
            # numbers.Real: numpy's float32 is not a float.
            bad = [isinstance(value, numbers.Real) and not math.isfinite(value) for value in values]
            values = [None if lost else value for value, lost in zip(values, bad, strict=True)]
            if kind == pa.int64() and any(isinstance(value, float) and not value.is_integer() for value in values):
                raise _Fraction
            self._marks = pc.or_(self._marks, pa.array(bad))
            return pa.array(values, kind)
        column = pa.array(values, kind)
        finite = pc.fill_null(pc.is_finite(column), True)
        if pc.all(finite).as_py() is False:
            self._marks = pc.or_(self._marks, pc.invert(finite))
            column = pc.if_else(finite, column, pa.scalar(None, kind))
        return column


def column_type(annotation: Any) -> ColumnType:
    """The type of the column that holds a parameter of this annotation.

    Raises:
        TypeError: it cannot be a column.
    """
    parts = {part for part in _parts(annotation) if part is not type(None)}
    names: dict[Any, ColumnType] = {float: "float64", int: "int64", str: "string", bool: "bool"}
    if len(parts) != 1 or not parts <= names.keys():
        raise TypeError(
            f"a parameter of type {annotation!r} cannot be a column; use float, int, str, bool or a Literal of one type"
        )
    return names[parts.pop()]


def _parts(annotation: Any) -> Iterator[Any]:
    """The plain types that a value of this annotation may have."""
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        for part in typing.get_args(annotation):
            yield from _parts(part)
    elif origin is typing.Annotated:
        yield from _parts(typing.get_args(annotation)[0])
    elif origin is typing.Literal:
        yield from (type(value) for value in typing.get_args(annotation))
    else:
        yield annotation
