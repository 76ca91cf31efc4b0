"""The target-shift rule."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from creditgrid.core.units.rule import Rule

if TYPE_CHECKING:
    from torch import Tensor


class TargetShift(Rule):
    """½ mean_b ‖h_l + F - stopgrad(h_{l+1} - κ â_l)‖², â = a/RMS(a). Protocols, section 6 (Local updates).

    The gradient is written out: the target is so close to F that their difference, κ â, would lose most of its digits
    in single precision.
    """

    name: ClassVar = "target_shift"
    normalises: ClassVar = True

    kappa: float = Field(gt=0, description="The shift κ, such as 0.01, 0.1, 0.3 or 1.0.")

    def output_gradient(self, branch: Tensor, credit: Tensor) -> Tensor:
        from creditgrid.core.science.per_sample import normalise_credit

        return normalise_credit(credit) * (self.kappa / branch.shape[-2])
