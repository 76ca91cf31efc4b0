"""The residual MLP as a function of its parameters: of one network, or of S networks side by side.

Networks side by side differ only in their parameters, as the candidates of a line search or several rollouts do. Each
parameter is one tensor (S, *shape), and batched matrix products compute all networks together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from creditgrid.core.science.network import LAYER_NORM_EPS, ResidualMLP


class FunctionalMLP:
    """The network with the parameters ``parameter(name)``: each of its plain shape, or each (S, *shape).

    ``parameter`` is called when a parameter is used, so that a caller may compute it then. Hidden states are (b, d), or
    (S, b, d) of networks side by side; states that all S networks share may be given as (b, d).
    """

    def __init__(self, parameter: Callable[[str], Tensor], num_blocks: int, residual_add: bool) -> None:
        self.parameter = parameter
        self.num_blocks = num_blocks
        self.residual_add = residual_add

    def part(self, which: slice) -> FunctionalMLP:
        """Some of the networks that stand side by side."""
        return FunctionalMLP(lambda name: self.parameter(name)[which], self.num_blocks, self.residual_add)

    def branch(self, layer: int, h: Tensor) -> Tensor:
        """F_l(h): (…, b, d) -> (…, b, d)."""
        name = f"blocks.{layer}"
        return self._linear(f"{name}.w2", F.gelu(self._linear(f"{name}.w1", self._layer_norm(f"{name}.ln", h))))

    def next(self, layer: int, h: Tensor) -> Tensor:
        """h_{l+1} of h_l."""
        branch = self.branch(layer, h)
        return h + branch if self.residual_add else branch

    def head(self, h: Tensor) -> Tensor:
        """out_head(out_ln(h)): (…, b, d) -> logits (…, b, C)."""
        return self._linear("out_head", self._layer_norm("out_ln", h))

    def hiddens(self, h: Tensor, first: int = 0) -> list[Tensor]:
        """h_first … h_L of h_first (…, b, d)."""
        found = [h]
        for layer in range(first, self.num_blocks):
            found.append(self.next(layer, found[-1]))
        return found

    def _layer_norm(self, name: str, h: Tensor) -> Tensor:
        weight, bias = self.parameter(f"{name}.weight"), self.parameter(f"{name}.bias")
        if weight.dim() == 1:
            return F.layer_norm(h, h.shape[-1:], weight, bias, LAYER_NORM_EPS)
        normal = F.layer_norm(h, h.shape[-1:], eps=LAYER_NORM_EPS)
        return torch.addcmul(bias.unsqueeze(1), normal, weight.unsqueeze(1))

    def _linear(self, name: str, h: Tensor) -> Tensor:
        weight, bias = self.parameter(f"{name}.weight"), self.parameter(f"{name}.bias")
        if weight.dim() == 2:
            return F.linear(h, weight, bias)
        return torch.baddbmm(bias.unsqueeze(1), h.expand(len(weight), *h.shape[-2:]), weight.mT)


Layers: TypeAlias = ResidualMLP | FunctionalMLP
"""One network, or networks side by side: branches and a head on hidden states (…, b, d)."""
