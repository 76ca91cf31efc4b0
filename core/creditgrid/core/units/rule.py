"""An update rule: the local loss of a block, as its gradient at the block's output."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from creditgrid.core.units.unit import Unit

if TYPE_CHECKING:
    from torch import Tensor


class Rule(Unit):
    """Base of update rules."""

    normalises: ClassVar[bool] = False
    """Whether the rule itself divides the credit by its RMS, so that ``norm_mode`` does not."""

    def output_gradient(self, branch: Tensor, credit: Tensor) -> Tensor:
        """∂loss_l/∂F of the mean over the batch of the local loss.

        ``branch`` is F_l(h_l) (…, b, n) and ``credit`` a_l (…, b, n), both detached: the elements of a hidden state are
        one dimension. The result is (…, b, n), and it holds the 1/b of the mean. Networks side by side are leading
        dimensions, so only the last two may be mixed.
        """
        raise NotImplementedError
