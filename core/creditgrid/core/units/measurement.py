"""A measurement: columns that are added to the rows of the shipped experiments."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from creditgrid.core.experiment import Column
from creditgrid.core.rows import RESERVED
from creditgrid.core.units.unit import NAME, Unit

if TYPE_CHECKING:
    from torch import Tensor

    from creditgrid.core.science.network import ResidualNetwork


@dataclass(frozen=True)
class Measured:
    """What a measurement sees: the checkpoint's network, frozen, and a batch x (b, D), y (b,).

    ``update`` is the change Δθ of each parameter that a local step moved (linesearch), or that all its steps moved
    together (exploitability, snapshot_time); None at a checkpoint that takes no step. The network is the one before
    the step.
    """

    network: ResidualNetwork
    x: Tensor
    y: Tensor
    update: Mapping[str, Tensor] | None


class Measurement(Unit):
    """Base of measurements. A measurement has no parameters."""

    columns: ClassVar[Mapping[str, Column]]
    """What it adds to each row, with the unit in the description."""
    after_step: ClassVar[bool] = False
    """Whether it measures an update, so that it needs an experiment with local steps."""

    def measure(self, measured: Measured) -> Mapping[str, float | int | str | bool | None]:
        """The value of each column; null where there is none."""
        raise NotImplementedError


def unfit_measurement(unit: type[Measurement], others: Iterable[type[Unit]]) -> str | None:
    """Why the columns of a measurement cannot be used beside those of others; None if they can."""
    columns = getattr(unit, "columns", None)
    if not isinstance(columns, Mapping) or not columns:
        return f"the measurement {unit.name} declares no columns"
    for name, column in columns.items():
        if not isinstance(name, str) or not re.fullmatch(NAME, name):
            return f"the column {name!r} of {unit.name} is not lower_case_with_underscores"
        if name in RESERVED:
            return f"the column {name!r} of {unit.name} is one of every row: rename it"
        if not isinstance(column, Column) or not column.description:
            return f"the column {name!r} of {unit.name} needs a description, with its unit"
        for other in others:
            if issubclass(other, Measurement) and name in other.columns:
                return f"the column {name!r} of {unit.name} is one of {other.name} as well: rename it"
    return None
