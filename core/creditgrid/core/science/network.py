"""Networks whose hidden states receive the credits: what all have, and the residual MLP of Protocols, section 1."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from creditgrid.core.science.functional import (
    ACTIVATIONS,
    LAYER_NORM_EPS,
    Activation,
    Functional,
    FunctionalMLP,
    FunctionalNetwork,
    Parameters,
    Placement,
)


class ResidualNetwork(nn.Module):
    """h_0 = embed(x); h_{l+1} = h_l + F_l(h_l) for l = 0…L-1; logits = head(h_L). All networks are one.

    With `residual_add=False` the skip is left out: h_{l+1} = F_l(h_l).

    A hidden state of any shape is here the vector of its n elements: blocks and the head reshape it. A parameter whose
    name starts with ``embed`` belongs to the embedding, one that starts with ``blocks.N.`` to block N, and all others
    to the head. Batches have leading dimensions (…, b), and no sample depends on another.
    """

    input_dim: int
    """Elements of a flattened image."""
    hidden_shape: tuple[int, ...]
    """The shape of the hidden state of one image."""
    num_classes: int
    num_blocks: int
    residual_add: bool
    blocks: nn.ModuleList

    @property
    def hidden_size(self) -> int:
        """The number n of elements of a hidden state."""
        return math.prod(self.hidden_shape)

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the parameters."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    def embedding(self, x: Tensor) -> Tensor:
        """h_0 of flattened images: (…, b, D) -> (…, b, n)."""
        raise NotImplementedError

    def branch(self, layer: int, h: Tensor) -> Tensor:
        """F_l(h): (…, b, n) -> (…, b, n)."""
        raise NotImplementedError

    def head(self, h: Tensor) -> Tensor:
        """Logits (…, b, C) of terminal hidden states h_L (…, b, n)."""
        raise NotImplementedError

    def forward(self, x: Tensor, return_hidden: bool = False) -> Tensor | tuple[Tensor, list[Tensor]]:
        """Logits (b, C) of flattened images x (b, D); with `return_hidden` also [h_0 … h_L], each (b, n)."""
        hiddens = [self.embedding(x)]
        for layer in range(self.num_blocks):
            hiddens.append(self._next(hiddens[-1], layer))
        logits = self.head(hiddens[-1])
        return (logits, hiddens) if return_hidden else logits

    def forward_from_layer(self, h: Tensor, layer: int) -> Tensor:
        """Logits (b, C) of hidden states h_layer (b, n): blocks layer…L-1, then the head; layer L is the head alone.

        Raises ValueError for a layer outside 0…L.
        """
        if not 0 <= layer <= self.num_blocks:
            raise ValueError(f"layer {layer} is outside 0…{self.num_blocks}")
        for index in range(layer, self.num_blocks):
            h = self._next(h, index)
        return self.head(h)

    def _next(self, h: Tensor, layer: int) -> Tensor:
        branch = self.branch(layer, h)
        return h + branch if self.residual_add else branch

    def parameter_names(self, blocks: Iterable[int] = (), *, head: bool = False) -> list[str]:
        """The names of the parameters of some blocks, and of the head, in state-dict order."""
        chosen = {f"blocks.{block}" for block in blocks}
        of_block = ((name, ".".join(name.split(".")[:2])) for name, _ in self.named_parameters())
        return [
            name
            for name, block in of_block
            if (block in chosen if name.startswith("blocks.") else head and not name.startswith("embed"))
        ]

    def with_parameters(self, parameter: Parameters) -> Functional:
        """The network as a function of other parameters, of one network or of S side by side.

        A network may return a faster function of its own than this one, which serves any.
        """
        names = [self.parameter_names([block]) for block in range(self.num_blocks)]
        return FunctionalNetwork(self, parameter, [*names, self.parameter_names(head=True)], self.residual_add)


class Block(nn.Module):
    """One residual branch, F(h) = w2(GELU(w1(ln(h)))), (b, d) -> (b, d); the addition of h is the network's.

    Variants: another ``activation``; the layer norm last (``post``) or left out (``none``); an inner width of
    d · ``expansion``; no ``bias`` in w1 and w2.
    """

    def __init__(
        self,
        d_hidden: int,
        w2_std: float = 0.01,
        *,
        generator: torch.Generator | None = None,
        activation: Activation = "gelu",
        norm: Placement = "pre",
        expansion: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.activation, self.norm = activation, norm
        if norm != "none":
            self.ln = nn.LayerNorm(d_hidden, LAYER_NORM_EPS, device=None if generator is None else generator.device)
        self.w1 = linear(d_hidden, d_hidden * expansion, generator, bias=bias)
        self.w2 = linear(d_hidden * expansion, d_hidden, generator, bias=bias)
        nn.init.normal_(self.w2.weight, 0.0, w2_std, generator=generator)
        if bias:
            nn.init.zeros_(self.w2.bias)

    def forward(self, h: Tensor) -> Tensor:
        inner = self.ln(h) if self.norm == "pre" else h
        out: Tensor = self.w2(ACTIVATIONS[self.activation](self.w1(inner)))
        return self.ln(out) if self.norm == "post" else out


class ResidualMLP(ResidualNetwork):
    """h_0 = embed(x); h_{l+1} = h_l + F_l(h_l) for l = 0…L-1; logits = out_head(out_ln(h_L)).

    `w2.weight` is drawn from N(0, w2_std²) and `w2.bias` is 0; every other parameter has torch's default distribution.
    Without a `generator` the draws come from torch's global random state, exactly as in a plain script. With one they
    come from it alone, on its device, and the global state does not change. The arguments after it are those of
    `Block`; without `bias` no linear layer of the network has one.
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
        activation: Activation = "gelu",
        norm: Placement = "pre",
        expansion: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.input_dim = input_dim
        self.d_hidden = d_hidden
        self.hidden_shape = (d_hidden,)
        self.num_classes = num_classes
        self.num_blocks = num_blocks
        self.residual_add = residual_add
        self._variant = activation, norm, bias
        self.embed = linear(input_dim, d_hidden, generator, bias=bias)
        self.blocks = nn.ModuleList(
            Block(
                d_hidden,
                w2_std,
                generator=generator,
                activation=activation,
                norm=norm,
                expansion=expansion,
                bias=bias,
            )
            for _ in range(num_blocks)
        )
        self.out_ln = nn.LayerNorm(d_hidden, LAYER_NORM_EPS, device=None if generator is None else generator.device)
        self.out_head = linear(d_hidden, num_classes, generator, bias=bias)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    def embedding(self, x: Tensor) -> Tensor:
        return self.embed(x)  # type: ignore[no-any-return]

    def branch(self, layer: int, h: Tensor) -> Tensor:
        return self.blocks[layer](h)  # type: ignore[no-any-return]

    def head(self, h: Tensor) -> Tensor:
        """out_head(out_ln(h)): logits (…, b, C) of terminal hidden states h_L (…, b, d)."""
        return self.out_head(self.out_ln(h))  # type: ignore[no-any-return]

    def with_parameters(self, parameter: Parameters) -> FunctionalMLP:
        """As batched matrix products, which are faster than the general function."""
        return FunctionalMLP(parameter, self.num_blocks, self.residual_add, *self._variant)


def linear(fan_in: int, fan_out: int, generator: torch.Generator | None, *, bias: bool = True) -> nn.Linear:
    """A Linear with torch's default initialisation: weight and bias uniform in ±1/sqrt(fan_in)."""
    if generator is None:
        return nn.Linear(fan_in, fan_out, bias=bias)
    # nn.Linear's own initialisation uses only the global random state, so it is skipped.
    linear = nn.Linear(fan_in, fan_out, bias=bias, device="meta").to_empty(device=generator.device)
    bound = 1 / math.sqrt(fan_in)
    nn.init.uniform_(linear.weight, -bound, bound, generator=generator)
    if bias:
        nn.init.uniform_(linear.bias, -bound, bound, generator=generator)
    return linear
