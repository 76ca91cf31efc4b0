"""Rows of the results table: their columns, their types, and how numbers that are not finite are stored.

A row is one cell's result: the cell's key, every parameter as a typed column, the measured columns, and provenance.
A measured float that is NaN or infinite is stored as null with ``diverged`` true, so that it is never the best value.
"""

from __future__ import annotations

import math
import numbers
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from creditgrid.core.experiment import ColumnType, Experiment

if TYPE_CHECKING:
    import pyarrow as pa

LEADING: Mapping[str, ColumnType] = {"sweep": "string", "cell": "string", "experiment": "string"}
PROVENANCE: Mapping[str, ColumnType] = {
    "diverged": "bool",
    "task": "string",
    "parents": "string",
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
    parameters = {name: _type(field.annotation) for name, field in experiment.params.model_fields.items()}
    measured = {name: column.type for name, column in experiment.columns.items()}
    return {**LEADING, **parameters, **measured, **PROVENANCE}


def schema(experiment: Experiment) -> pa.Schema:
    """The Arrow schema of the experiment's rows."""
    import pyarrow as pa

    arrow = {
        "float64": pa.float64(),
        "int64": pa.int64(),
        "string": pa.string(),
        "bool": pa.bool_(),
        "timestamp": pa.timestamp("us", tz="UTC"),
    }
    return pa.schema([(name, arrow[kind]) for name, kind in columns(experiment).items()])


def table(experiment: Experiment, rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Rows as an Arrow table of the experiment's schema.

    Raises:
        ValueError: for a row with a column that the experiment does not declare, or a value of another type.
    """
    import pyarrow as pa

    wanted = schema(experiment)
    unknown = {name for row in rows for name in row} - set(wanted.names)
    if unknown:
        raise ValueError(f"{experiment.name} yields columns it does not declare: {', '.join(sorted(unknown))}")
    whole = [name for name, column in experiment.columns.items() if column.type == "int64"]
    try:
        shaped = [finite(row, experiment.columns) for row in rows]
        for name in whole:  # Arrow would drop the fraction
            if any(isinstance(row.get(name), float) and not row[name].is_integer() for row in shaped):
                raise ValueError(f"a row of {experiment.name} has a fraction in the whole-number column {name}")
        return pa.Table.from_pylist(shaped, schema=wanted)
    except (pa.ArrowException, OverflowError) as error:
        raise ValueError(f"a row of {experiment.name} does not fit its columns: {error}") from error


def finite(row: Mapping[str, Any], measured: Iterable[str]) -> dict[str, Any]:
    """The row with each non-finite measured float as None, and ``diverged`` saying whether there was one."""
    out = dict(row)
    # numbers.Real: numpy's float32 is not a float.
    nonfinite = [name for name in measured if isinstance(out.get(name), numbers.Real) and not math.isfinite(out[name])]
    for name in nonfinite:
        out[name] = None
    out["diverged"] = bool(nonfinite)
    return out


def _type(annotation: Any) -> ColumnType:
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
