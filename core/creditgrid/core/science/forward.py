"""What a network computed for a batch, and what follows from it: all that a credit method may use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from creditgrid.core.science.credit import layer_times, output_error, terminal_gradient
from creditgrid.core.science.functional import Layers


@dataclass(frozen=True)
class Forward:
    """A forward pass of a frozen network; of S networks side by side every tensor has a leading dimension S.

    ``hiddens`` are h_0 … h_L, each (…, b, n): a hidden state of any shape is the vector of its n elements. ``logits``
    are (…, b, C), ``y`` int64 (b,). Credits are wanted for the layers ``first`` … L-1.
    """

    network: Layers
    hiddens: Sequence[Tensor]
    logits: Tensor
    y: Tensor
    first: int = 0

    @cached_property
    def error(self) -> Tensor:
        """e_T = softmax(logits) - onehot(y): (…, b, C)."""
        return output_error(self.logits, self.y)

    @cached_property
    def terminal_gradient(self) -> Tensor:
        """δ_L = ∂CE_sum/∂h_L, each sample's own gradient: (…, b, n)."""
        return terminal_gradient(self.network, self.hiddens[-1], self.y)

    @cached_property
    def states(self) -> Tensor:
        """h_first … h_{L-1} as one tensor: (L - first, …, b, n)."""
        return torch.stack(list(self.hiddens[self.first : -1])).detach()

    @cached_property
    def depths(self) -> Tensor:
        """t_l = l/L of ``states``, to broadcast against (L - first, …, b)."""
        return layer_times(self.states, self.first)
