"""Values as a chart shows them: their order, their labels, and their places in a list of colours."""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

# Okabe & Ito (2008): eight colours that people with any colour vision can distinguish; the palest are last.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")

Combination: TypeAlias = tuple[Any, ...]
"""The values of several columns in one row."""


@dataclass(frozen=True, slots=True)
class Values:
    """The combinations of values of some columns, in order, each with a label and a slot.

    ``title`` names the columns in the labels. A slot is a place in a list of colours. A value that the column's JSON
    Schema lists has its own slot, so that a method has the same colour in all sweeps.
    """

    columns: Sequence[str]
    combinations: Sequence[Combination]
    labels: Sequence[str]
    title: str
    slots: Sequence[int]

    @classmethod
    def of(cls, columns: Sequence[str], found: Iterable[Combination], parameters: Mapping[str, Any]) -> Values:
        """The found values in the order of the schema; otherwise by size or alphabet, with null last."""
        listed = [_listed(parameters.get(name, {})) for name in columns]
        combinations = sorted(
            set(found), key=lambda some: [_rank(value, known) for value, known in zip(some, listed, strict=True)]
        )
        named = [_in_label(columns, combinations, combination) for combination in combinations]
        title = ", ".join(name for i, name in enumerate(columns) if i == 0 or any(i in some for some in named))
        labels = [_label(columns, some, places) for some, places in zip(combinations, named, strict=True)]
        return cls(columns, combinations, labels, title, _slots(combinations, listed))

    @property
    def labelled(self) -> dict[Combination, str]:
        return dict(zip(self.combinations, self.labels, strict=True))

    @property
    def numeric(self) -> bool:
        """Whether these are numbers of one column, such as layers, so that colours should show their order."""
        return len(self.columns) == 1 and all(is_number(value) for (value,) in self.combinations)


def label_of(value: Any) -> str:
    """One value as text."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        short = f"{value:g}"
        return (short if float(short) == value else repr(value)).replace("e-0", "e-").replace("e+0", "e")
    return str(value)


def is_number(value: Any) -> bool:
    """Whether the value has a place on a continuous axis."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _in_label(columns: Sequence[str], combinations: Sequence[Combination], combination: Combination) -> list[int]:
    """Which columns are in a label: the first, and those that distinguish it from others.

    Another column is in the label if it varies among combinations with the same columns before it, or if it has a value
    here and is null elsewhere: "target_shift, kappa = 0.1" beside "inner_product", "scalar_cb, e_T" beside "dfa".
    """
    named = [0] if columns else []
    for i in range(1, len(columns)):
        alike = {other[i] for other in combinations if other[:i] == combination[:i]}
        partial = any(other[i] is None for other in combinations)
        if len(alike) > 1 or (partial and combination[i] is not None):
            named.append(i)
    return named


def _label(columns: Sequence[str], combination: Combination, named: Sequence[int]) -> str:
    return ", ".join(
        label_of(combination[i])
        if i == 0 or isinstance(combination[i], str)
        else f"{columns[i]} = {label_of(combination[i])}"
        for i in named
    )


def _slots(combinations: Sequence[Combination], listed: Sequence[Sequence[Any]]) -> list[int]:
    """The first combination of a listed value gets the value's own slot; the others get the first free slots."""
    known = list(listed[0]) if listed and len(listed[0]) <= len(COLOURS) else []
    slots: list[int] = []
    taken = {known.index(some[0]) for some in combinations if some and some[0] in known}
    free = (slot for slot in range(len(known) + len(combinations)) if slot not in taken)
    seen: set[Any] = set()
    for some in combinations:
        first = some[0] if some else None
        slots.append(known.index(first) if first in known and first not in seen else next(free))
        seen.add(first)
    return slots


def _listed(schema: Mapping[str, Any]) -> list[Any]:
    """The values that a parameter's JSON Schema lists."""
    return [value for part in (schema, *schema.get("anyOf", ())) for value in part.get("enum", ())]


def _rank(value: Any, listed: Sequence[Any]) -> tuple[int, float, str]:
    if value in listed:
        return (0, listed.index(value), "")
    if is_number(value):
        return (1, float(value), "")
    return (3 if value is None else 2, 0, str(value))
