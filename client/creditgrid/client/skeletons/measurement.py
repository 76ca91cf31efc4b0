"""my_unit: a measurement, which adds columns to the rows of an experiment.

Replace the formula by yours; then `creditgrid check my_unit.py`.
"""

from __future__ import annotations

from creditgrid.core.units.decorators import measurement
from creditgrid.core.units.measurement import Measured


# Each column has a description with its unit; a number is float64, or give a Column with another type.
# after_step: it measures the update of a local step, so it needs an experiment with steps. Without it,
# measured.update may be None.
@measurement(columns={"my_unit": "Euclidean length of the update of all parameters."}, after_step=True)
def my_unit(measured: Measured) -> dict[str, float | None]:
    """The length of an update."""  # the first line is the title
    # measured has the network before the step, a batch x (b, D) with labels y (b,), and the update by parameter.
    assert measured.update is not None
    squares = sum(part.double().square().sum() for part in measured.update.values())
    return {"my_unit": float(squares) ** 0.5}
