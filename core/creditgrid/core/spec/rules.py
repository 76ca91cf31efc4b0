"""Exclude rules, matched for all of a grid's cells in time that does not grow with their number.

Each rule is one bit of a whole number. For each axis, every value has the bits of the rules that it satisfies. A cell
is left out if some bit is set for all of its values.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from creditgrid.core.fingerprint import canonical_json


class Rules:
    """The rules of a grid.

    Args:
        rules: for each rule, the values by parameter that a cell must have to be left out.
        base: the values of a cell that no axis gives.
        axes: the names of the axes.
    """

    def __init__(self, rules: Sequence[Mapping[str, Any]], base: Mapping[str, Any], axes: Iterable[str]) -> None:
        names = frozenset(axes)
        active = [
            {name: value for name, value in rule.items() if name in names}
            for rule in rules
            if all(name in names or base[name] == value for name, value in rule.items())
        ]
        self.any = bool(active)
        self._all = (1 << len(active)) - 1
        self._named: dict[str, int] = defaultdict(int)
        self._satisfied: dict[str, dict[Any, int]] = defaultdict(dict)
        for number, rule in enumerate(active):
            for name, value in rule.items():
                satisfied, key = self._satisfied[name], hashable(value)
                self._named[name] |= 1 << number
                satisfied[key] = satisfied.get(key, 0) | 1 << number

    def matching(self, names: Iterable[str], values: Iterable[Any]) -> int:
        """The bits of the rules that these values of these axes satisfy. Bits of all axes together match a cell."""
        found = self._all
        for name, value in zip(names, values, strict=True):
            if name in self._named:
                found &= ~self._named[name] | self._satisfied[name].get(hashable(value), 0)
        return found


def hashable(value: Any) -> Any:
    """A key that equal values of one parameter share: the value, or the JSON of a list or an object."""
    return canonical_json(value) if isinstance(value, list | dict) else value
