"""Measurements of a sweep: what they see, and what they add to the rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from torch import Tensor

from creditgrid.core.errors import TaskError
from creditgrid.core.science.network import ResidualNetwork
from creditgrid.core.units.measurement import Measured, Measurement

Update: TypeAlias = Callable[[], Mapping[str, Tensor]]
"""Makes the change Δθ of each parameter that a step moved, where somebody asks for it."""


def measured(
    measurements: Sequence[Measurement],
    network: ResidualNetwork,
    x: Tensor,
    y: Tensor,
    update: Mapping[str, Tensor] | None = None,
) -> dict[str, Any]:
    """The columns of the measurements on a batch x (b, D), y (b,), see `Measured`.

    Raises:
        TaskError: a measurement gives other columns than it declares.
    """
    found: dict[str, Any] = {}
    for measurement in measurements:
        values: Mapping[str, Any] = measurement.measure(Measured(network, x, y, update))
        if values.keys() != measurement.columns.keys():
            gave, declares = ", ".join(values) or "none", ", ".join(measurement.columns)
            raise TaskError(f"the measurement {measurement.name} gave the columns {gave}, and declares {declares}")
        found |= {name: plain(value) for name, value in values.items()}
    return found


def plain(value: Any) -> Any:
    """A value of a column; a tensor or a NumPy number of one element is the number."""
    single = isinstance(value, Tensor | np.generic | np.ndarray) and math.prod(value.shape) == 1
    return value.item() if single else value
