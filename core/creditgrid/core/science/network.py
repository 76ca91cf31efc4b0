"""The residual MLP whose hidden states receive the credits: Protocols, section 1 (Network)."""

from __future__ import annotations

import math
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

LAYER_NORM_EPS = 1e-5


class Block(nn.Module):
    """One residual branch, F(h) = w2(GELU(w1(ln(h)))), (b, d) -> (b, d); the addition of h is the network's."""

    def __init__(self, d_hidden: int, w2_std: float = 0.01, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.ln = nn.LayerNorm(d_hidden, LAYER_NORM_EPS, device=None if generator is None else generator.device)
        self.w1 = linear(d_hidden, d_hidden, generator)
        self.w2 = linear(d_hidden, d_hidden, generator)
        nn.init.normal_(self.w2.weight, 0.0, w2_std, generator=generator)
        nn.init.zeros_(self.w2.bias)

    def forward(self, h: Tensor) -> Tensor:
        return self.w2(F.gelu(self.w1(self.ln(h))))  # type: ignore[no-any-return]


class ResidualMLP(nn.Module):
    """h_0 = embed(x); h_{l+1} = h_l + F_l(h_l) for l = 0…L-1; logits = out_head(out_ln(h_L)).

    With `residual_add=False` the skip is left out: h_{l+1} = F_l(h_l).

    `w2.weight` is drawn from N(0, w2_std²) and `w2.bias` is 0; every other parameter has torch's default distribution.
    Without a `generator` the draws come from torch's global random state, exactly as in a plain script. With one they
    come from it alone, on its device, and the global state does not change.
    """

    def __init__(  # noqa: PLR0917 (researchers' scripts pass these by position)
        self,
        input_dim: int,
        d_hidden: int,
        num_classes: int,
        num_blocks: int,
        residual_add: bool = True,
        w2_std: float = 0.01,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.input_dim = input_dim
        self.d_hidden = d_hidden
        self.num_classes = num_classes
        self.num_blocks = num_blocks
        self.residual_add = residual_add
        self.embed = linear(input_dim, d_hidden, generator)
        self.blocks = nn.ModuleList(Block(d_hidden, w2_std, generator=generator) for _ in range(num_blocks))
        self.out_ln = nn.LayerNorm(d_hidden, LAYER_NORM_EPS, device=None if generator is None else generator.device)
        self.out_head = linear(d_hidden, num_classes, generator)

    def forward(self, x: Tensor, return_hidden: bool = False) -> Tensor | tuple[Tensor, list[Tensor]]:
        """Logits (b, C) of flattened images x (b, D); with `return_hidden` also [h_0 … h_L], each (b, d)."""
        hiddens = [self.embed(x)]
        for layer in range(self.num_blocks):
            hiddens.append(self._next(hiddens[-1], layer))
        logits = self.head(hiddens[-1])
        return (logits, hiddens) if return_hidden else logits

    def forward_from_layer(self, h: Tensor, layer: int) -> Tensor:
        """Logits (b, C) of hidden states h_layer (b, d): blocks layer…L-1, then the head; layer L is the head alone.

        Raises ValueError for a layer outside 0…L.
        """
        if not 0 <= layer <= self.num_blocks:
            raise ValueError(f"layer {layer} is outside 0…{self.num_blocks}")
        for index in range(layer, self.num_blocks):
            h = self._next(h, index)
        return self.head(h)

    def head(self, h: Tensor) -> Tensor:
        """out_head(out_ln(h)): logits (b, C) of terminal hidden states h_L (b, d)."""
        return self.out_head(self.out_ln(h))  # type: ignore[no-any-return]

    def branch(self, layer: int, h: Tensor) -> Tensor:
        """F_l(h): (b, d) -> (b, d)."""
        return self.blocks[layer](h)  # type: ignore[no-any-return]

    def _next(self, h: Tensor, layer: int) -> Tensor:
        branch = self.branch(layer, h)
        return h + branch if self.residual_add else branch


ResidualNetwork: TypeAlias = ResidualMLP
"""A network of residual blocks."""


def linear(fan_in: int, fan_out: int, generator: torch.Generator | None) -> nn.Linear:
    """A Linear with torch's default initialisation: weight and bias uniform in ±1/sqrt(fan_in)."""
    if generator is None:
        return nn.Linear(fan_in, fan_out)
    # nn.Linear's own initialisation uses only the global random state, so it is skipped.
    linear = nn.Linear(fan_in, fan_out, device="meta").to_empty(device=generator.device)
    bound = 1 / math.sqrt(fan_in)
    nn.init.uniform_(linear.weight, -bound, bound, generator=generator)
    nn.init.uniform_(linear.bias, -bound, bound, generator=generator)
    return linear
