"""Work: what a task costs a machine, in units that do not depend on the machine, and the cost models that say so.

A kind declares a cost model. A plan asks it about each task and adds the works up call by call; what earlier calls took
turns them into seconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real
from typing import Any, NamedTuple, Self, TypeAlias

LARGEST = 1e24
"""No work or size is larger: a cost model that says so is wrong."""
MOST_PARTS, LONGEST_NAME = 1000, 1000
"""Shared parts of a cost, and characters of their names."""


class Work(NamedTuple):
    """What a machine does for a task. Any of the three may be left out."""

    launches: float = 0.0
    """Operations that the framework starts. Each costs some microseconds, however small its tensors are."""
    flops: float = 0.0
    """Floating-point operations of matrix products, two for each multiply-add; in double precision they count twice."""
    elements: float = 0.0
    """Numbers that a sum of two tensors would read and write; costlier functions count several for each."""

    def plus(self, other: Work) -> Work:
        return Work(self[0] + other[0], self[1] + other[1], self[2] + other[2])

    def times(self, factor: float) -> Work:
        return Work(self[0] * factor, self[1] * factor, self[2] * factor)

    def largest(self, other: Work) -> Work:
        """The larger of each."""
        return Work(max(self[0], other[0]), max(self[1], other[1]), max(self[2], other[2]))

    @property
    def scale(self) -> int:
        """Its order of magnitude, in powers of two."""
        return max(0, math.frexp(1.0 + self.launches + self.flops / 1e6 + self.elements / 1e5)[1])

    @classmethod
    def total(cls, *works: Self) -> Work:
        return Work(sum(w[0] for w in works), sum(w[1] for w in works), sum(w[2] for w in works))


NO_WORK = Work()


class Cost(NamedTuple):
    """What one task adds to its call.

    ``own`` is added for each task. ``shared`` are parts by name that a call does once for all tasks that name it, as
    large as the largest: a training to epoch 100 with checkpoints at 5, 20 and 100 trains 100 epochs. ``bytes`` are
    those of the task's artifact; None if unknown.
    """

    own: Work = NO_WORK
    shared: tuple[tuple[str, Work], ...] = ()
    bytes: float | None = None


CostModel: TypeAlias = Callable[[Any, Any], Cost | None]
"""Takes a task and what is ``costing.Given``; returns None if the cost cannot be known, as for images of unknown size.

It must be quick, and import no torch: plans call it.
"""


def checked(cost: Cost | None) -> Cost | None:
    """The cost, in plain numbers.

    Raises:
        ValueError, TypeError: it is no cost, or has a number that is negative, not finite or beyond ``LARGEST``.
    """
    if cost is None or (type(cost) is Cost and _sound(cost)):
        return cost
    if not isinstance(cost, Cost):
        raise TypeError(f"it returned {type(cost).__name__}, not a Cost")
    if len(cost.shared) > MOST_PARTS:
        raise ValueError(f"it names {len(cost.shared):,} shared parts; accepted: {MOST_PARTS}")
    shared = tuple((_text(name), _work(part)) for name, part in cost.shared)
    return Cost(_work(cost.own), shared, None if cost.bytes is None else _number("bytes", cost.bytes))


def _sound(cost: Cost) -> bool:
    """Whether a cost is right as it is: quick, because most are. Large integers are not, nor others' number types."""
    if len(cost.shared) > MOST_PARTS:
        return False
    for work in (cost.own, *(part for _, part in cost.shared)):
        if type(work) is not Work:
            return False
        launches, flops, elements = work
        if not (_plain(launches) and _plain(flops) and _plain(elements)):
            return False
    return (cost.bytes is None or _plain(cost.bytes)) and all(
        type(name) is str and len(name) <= LONGEST_NAME for name, _ in cost.shared
    )


def _plain(value: object) -> bool:
    if type(value) is float:
        return 0 <= value <= LARGEST
    return type(value) is int and 0 <= value <= 2**53


def _text(name: object) -> str:
    if not isinstance(name, str) or len(name) > LONGEST_NAME:
        raise TypeError(f"a shared part is named {name!r:.80}; accepted: a text of up to {LONGEST_NAME} characters")
    return name


def _work(work: Work) -> Work:
    if not isinstance(work, Work):
        raise TypeError(f"it returned {type(work).__name__} where a Work is needed")
    return Work(*(_number(name, value) for name, value in zip(Work._fields, work, strict=True)))


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"its {name} are {value!r:.80}, which is no number")
    number = float(value)
    if not 0 <= number <= LARGEST:  # nor is a NaN
        raise ValueError(f"its {name} are {value!r:.80}; accepted: 0 to {LARGEST:g}")
    return number
