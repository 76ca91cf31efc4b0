"""my_unit: an update rule, as the gradient of a block's local loss at its output.

Replace the formula by yours; then `creditgrid check my_unit.py`.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from creditgrid.core.units.decorators import rule


# branch is F_l(h_l) and credit is a_l, both (…, b, n): networks side by side are leading dimensions, so mix the last
# two alone. The result is ∂loss_l/∂F of a mean over the batch, so it is divided by b = branch.shape[-2].
# Further arguments are parameters in specs: a type, bounds, and a description with the unit.
@rule
def my_unit(
    branch: Tensor, credit: Tensor, my_unit_pull: float = Field(0.1, ge=0, description="Weight of the pull to 0.")
) -> Tensor:
    """mean_b ⟨F, a_l⟩ + ½ pull ‖F‖²."""  # the first line is the title
    return (credit + my_unit_pull * branch) / branch.shape[-2]
