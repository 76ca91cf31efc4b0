"""The inner-product rule."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from creditgrid.core.units.rule import Rule

if TYPE_CHECKING:
    from torch import Tensor


class InnerProduct(Rule):
    """mean_b ⟨F, a_l⟩. Protocols, section 6 (Local updates)."""

    name: ClassVar = "inner_product"

    def output_gradient(self, branch: Tensor, credit: Tensor) -> Tensor:
        return credit / branch.shape[-2]
