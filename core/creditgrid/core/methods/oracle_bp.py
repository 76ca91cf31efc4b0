"""Backpropagation: the gradient itself, which the other methods estimate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from creditgrid.core.science import counts
from creditgrid.core.units.method import Method

if TYPE_CHECKING:
    from torch import Tensor

    from creditgrid.core.science.forward import Forward
    from creditgrid.core.units.shape import Shape
    from creditgrid.core.work import Work


class OracleBP(Method):
    """∂CE/∂h_l by backprop. Protocols, section 4 (Credit sources)."""

    name: ClassVar = "oracle_bp"
    exact: ClassVar = True
    side_by_side: ClassVar = True

    oracle_reduction: Literal["mean", "sum"] = Field(
        "mean",
        description="Reduction of the loss before its gradient: mean over the batch (1/b of a sample's own), or sum.",
    )

    def credit(self, forward: Forward, fitted: Any) -> Tensor:  # noqa: ARG002
        from creditgrid.core.science.credit import backprop

        samples = len(forward.y) if self.oracle_reduction == "mean" else 1
        return backprop(forward.network, forward.hiddens, forward.terminal_gradient / samples, forward.first)

    def credit_cost(self, shape: Shape, samples: float, layers: float) -> Work:
        return counts.backprop(shape, samples, layers)
