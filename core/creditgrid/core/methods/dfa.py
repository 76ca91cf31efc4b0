"""Direct feedback alignment: the output error through fixed random matrices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from creditgrid.core.units.method import Method
from creditgrid.core.work import Work

if TYPE_CHECKING:
    from torch import Tensor

    from creditgrid.core.science.forward import Forward
    from creditgrid.core.units.shape import Shape


class DFA(Method):
    """e_T B_lᵀ with fixed random matrices B_l (n, C). Protocols, section 4 (Credit sources).

    The method is Nøkland's (2016, Direct Feedback Alignment Provides Learning in Deep Neural Networks).
    """

    name: ClassVar = "dfa"
    uses_feedback: ClassVar = True
    baseline: ClassVar = True
    side_by_side: ClassVar = True

    def load(self, tensors: Mapping[str, Tensor]) -> Sequence[Tensor]:
        return [tensors[f"B.{layer}"] for layer in range(len(tensors))]

    def credit(self, forward: Forward, fitted: Sequence[Tensor]) -> Tensor:
        from creditgrid.core.science.credit import feedback_credits

        return feedback_credits(fitted, forward.error, forward.first)

    def credit_cost(self, shape: Shape, samples: float, layers: float) -> Work:
        points = samples * layers
        return Work(10 + 3 * layers, 2.0 * points * shape.classes * shape.hidden, points * shape.hidden)
