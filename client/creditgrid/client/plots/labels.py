"""Values as a chart shows them: in which order they stand, what they are called, and which colour is theirs."""

from __future__ import annotations

import numbers
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

# Okabe & Ito (2008): eight colours that people with any kind of colour vision tell apart; the palest come last.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")

Combination: TypeAlias = tuple[Any, ...]
"""The values of several columns in one row."""


@dataclass(frozen=True, slots=True)
class Values:
    """The combinations that some columns take, in order; ``labels`` and ``slots`` go with them.

    ``title`` names the columns that the labels tell. A slot is a place in a list of colours: of a column that lists its
    values in its JSON Schema each value has its own, so that a method has one colour in all sweeps.
    """

    columns: Sequence[str]
    combinations: Sequence[Combination]
    labels: Sequence[str]
    title: str
    slots: Sequence[int]

    @classmethod
    def of(cls, columns: Sequence[str], found: Iterable[Combination], parameters: Mapping[str, Any]) -> Values:
        """The values found, in the order of the schema, else of size or of the alphabet; null is last."""
        listed = [_listed(parameters.get(name, {})) for name in columns]
        combinations = sorted(
            set(found), key=lambda some: [_rank(value, known) for value, known in zip(some, listed, strict=True)]
        )
        told = [_told(columns, combinations, combination) for combination in combinations]
        title = ", ".join(name for i, name in enumerate(columns) if i == 0 or any(i in some for some in told))
        labels = [_label(columns, some, places) for some, places in zip(combinations, told, strict=True)]
        return cls(columns, combinations, labels, title, _slots(combinations, listed))

    @property
    def labelled(self) -> dict[Combination, str]:
        return dict(zip(self.combinations, self.labels, strict=True))

    @property
    def numeric(self) -> bool:
        """Whether these are numbers of one column, such as layers, whose order a reader should see."""
        return len(self.columns) == 1 and all(is_number(value) for (value,) in self.combinations)


def label_of(value: Any) -> str:
    """One value in words."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        short = f"{value:g}"
        return (short if float(short) == value else repr(value)).replace("e-0", "e-").replace("e+0", "e")
    return str(value)


def is_number(value: Any) -> bool:
    """Whether it has a place on a continuous axis."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _told(columns: Sequence[str], combinations: Sequence[Combination], combination: Combination) -> list[int]:
    """Which columns a label tells: the first, and of the others what sets it apart.

    Another column is told where it varies among combinations that begin alike, or where it has a value and elsewhere is
    null: "target_shift, kappa = 0.1" beside "inner_product", and "dfa" beside "scalar_cb, e_T" and "scalar_cb, delta_L"
    are told apart so.
    """
    told = [0] if columns else []
    for i in range(1, len(columns)):
        alike = {other[i] for other in combinations if other[:i] == combination[:i]}
        partial = any(other[i] is None for other in combinations)
        if len(alike) > 1 or (partial and combination[i] is not None):
            told.append(i)
    return told


def _label(columns: Sequence[str], combination: Combination, told: Sequence[int]) -> str:
    return ", ".join(
        label_of(combination[i])
        if i == 0 or isinstance(combination[i], str)
        else f"{columns[i]} = {label_of(combination[i])}"
        for i in told
    )


def _slots(combinations: Sequence[Combination], listed: Sequence[Sequence[Any]]) -> list[int]:
    """The first combination of a listed value has the value's own slot; the rest have the first that are free."""
    known = list(listed[0]) if listed and len(listed[0]) <= len(COLOURS) else []
    slots: list[int] = []
    taken = {known.index(some[0]) for some in combinations if some and some[0] in known}
    free = (slot for slot in range(len(known) + len(combinations)) if slot not in taken)
    begun: dict[Any, int] = defaultdict(int)
    for some in combinations:
        first = some[0] if some else None
        begun[first] += 1
        slots.append(known.index(first) if first in known and begun[first] == 1 else next(free))
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
