"""A network as a function of its parameters: of one network, or of S networks side by side.

Networks side by side differ only in their parameters, as the candidates of a line search or several rollouts do. Each
parameter is one tensor (S, *shape). ``FunctionalNetwork`` computes any network with ``torch.func``; ``FunctionalMLP``
computes the residual MLP faster, by batched matrix products. A network says by ``with_parameters`` which one it uses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, Self, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

Parameters: TypeAlias = Callable[[str], Tensor]
"""The parameter of a name; it is called when the parameter is used, so that it may be computed then."""
Activation = Literal["gelu", "relu", "tanh", "silu"]
Placement = Literal["pre", "post", "none"]

LAYER_NORM_EPS = 1e-5
ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "relu": F.relu,
    "tanh": torch.tanh,
    "silu": F.silu,
}
ON_CPU: int | None = 1
"""Networks that a CPU computes at a time: its caches hold the activations of one. A GPU computes all at once."""


class Layers(Protocol):
    """One network, or networks side by side: branches and a head on hidden states (…, b, n)."""

    num_blocks: int
    residual_add: bool

    def branch(self, layer: int, h: Tensor) -> Tensor:
        """F_l(h): (…, b, n) -> (…, b, n)."""

    def head(self, h: Tensor) -> Tensor:
        """Logits (…, b, C) of terminal hidden states (…, b, n)."""

    def forward_from_layer(self, h: Tensor, layer: int) -> Tensor:
        """Logits (…, b, C) of h_layer (…, b, n), run through the blocks from ``layer`` on."""

    def with_parameters(self, parameter: Parameters) -> Functional:
        """The network with other parameters: each of its plain shape, or each (S, *shape) of networks side by side."""


class Functional:
    """Base of networks as functions of the parameters ``parameter(name)``.

    Hidden states are (b, n), or (S, b, n) of networks side by side; states that all S networks share may be given as
    (b, n).
    """

    parameter: Parameters
    num_blocks: int
    residual_add: bool

    def with_parameters(self, parameter: Parameters) -> Self:
        """The network with other parameters."""
        raise NotImplementedError

    def branch(self, layer: int, h: Tensor) -> Tensor:
        """F_l(h): (…, b, n) -> (…, b, n)."""
        raise NotImplementedError

    def head(self, h: Tensor) -> Tensor:
        """Logits (…, b, C) of terminal hidden states (…, b, n)."""
        raise NotImplementedError

    def part(self, which: slice) -> Self:
        """Some of the networks that are side by side."""
        return self.with_parameters(lambda name: self.parameter(name)[which])

    def alone(self, index: int) -> Self:
        """One of the networks that are side by side, as a network of its own."""
        return self.with_parameters(lambda name: self.parameter(name)[index])

    def next(self, layer: int, h: Tensor) -> Tensor:
        """h_{l+1} of h_l."""
        branch = self.branch(layer, h)
        return h + branch if self.residual_add else branch

    def hiddens(self, h: Tensor, first: int = 0) -> list[Tensor]:
        """h_first … h_L of h_first (…, b, n)."""
        found = [h]
        for layer in range(first, self.num_blocks):
            found.append(self.next(layer, found[-1]))
        return found

    def forward_from_layer(self, h: Tensor, layer: int) -> Tensor:
        """Logits (…, b, C) of h_layer (…, b, n)."""
        return self.head(self.hiddens(h, layer)[-1])


class FunctionalNetwork(Functional):
    """Any network, by ``torch.func``.

    Args:
        network: a module with ``branch(layer, h)`` and ``head(h)``, whose own parameters are not used.
        parameter: all parameters of a block, or of the head, have a dimension S, or none of them has.
        names: the parameters of each block, and last those of the head.
    """

    def __init__(
        self, network: nn.Module, parameter: Parameters, names: Sequence[Sequence[str]], residual_add: bool
    ) -> None:
        self.parameter = parameter
        self.num_blocks = len(names) - 1
        self.residual_add = residual_add
        self._network = network
        self._call = _Call(network)
        self._names = names

    def with_parameters(self, parameter: Parameters) -> FunctionalNetwork:
        return FunctionalNetwork(self._network, parameter, self._names, self.residual_add)

    def branch(self, layer: int, h: Tensor) -> Tensor:
        return self._evaluate(self._names[layer], h, "branch", layer)

    def head(self, h: Tensor) -> Tensor:
        return self._evaluate(self._names[-1], h, "head")

    def _evaluate(self, names: Sequence[str], h: Tensor, method: str, *layer: int) -> Tensor:
        values = {f"network.{name}": self.parameter(name) for name in names}

        def one(values: Mapping[str, Tensor], h: Tensor) -> Any:
            return torch.func.functional_call(self._call, dict(values), (method, *layer, h), tie_weights=False)

        side_by_side = any(
            value.dim() > self._network.get_parameter(name).dim()
            for name, value in zip(names, values.values(), strict=True)
        )
        if side_by_side:
            one = torch.vmap(one, in_dims=(0, 0 if h.dim() > 2 else None), chunk_size=ON_CPU if h.is_cpu else None)
        found: Tensor = one(values, h)
        return found


class _Call(nn.Module):
    """Calls a method of a network: ``torch.func`` calls ``forward`` alone."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, method: str, *arguments: Any) -> Any:
        return getattr(self.network, method)(*arguments)


class FunctionalMLP(Functional):
    """The residual MLP (see `science.network`), whose variants have other activations, placements of the layer norm,
    and linear layers without a bias."""

    def __init__(  # noqa: PLR0917
        self,
        parameter: Parameters,
        num_blocks: int,
        residual_add: bool,
        activation: Activation = "gelu",
        norm: Placement = "pre",
        bias: bool = True,
    ) -> None:
        self.parameter = parameter
        self.num_blocks = num_blocks
        self.residual_add = residual_add
        self._variant = activation, norm, bias

    def with_parameters(self, parameter: Parameters) -> FunctionalMLP:
        return FunctionalMLP(parameter, self.num_blocks, self.residual_add, *self._variant)

    def branch(self, layer: int, h: Tensor) -> Tensor:
        activation, norm, _ = self._variant
        name = f"blocks.{layer}"
        inner = self._layer_norm(f"{name}.ln", h) if norm == "pre" else h
        out = self._linear(f"{name}.w2", ACTIVATIONS[activation](self._linear(f"{name}.w1", inner)))
        return self._layer_norm(f"{name}.ln", out) if norm == "post" else out

    def head(self, h: Tensor) -> Tensor:
        return self._linear("out_head", self._layer_norm("out_ln", h))

    def _layer_norm(self, name: str, h: Tensor) -> Tensor:
        weight, bias = self.parameter(f"{name}.weight"), self.parameter(f"{name}.bias")
        if weight.dim() == 1:
            return F.layer_norm(h, h.shape[-1:], weight, bias, LAYER_NORM_EPS)
        normal = F.layer_norm(h, h.shape[-1:], eps=LAYER_NORM_EPS)
        return torch.addcmul(bias.unsqueeze(1), normal, weight.unsqueeze(1))

    def _linear(self, name: str, h: Tensor) -> Tensor:
        weight = self.parameter(f"{name}.weight")
        bias = self.parameter(f"{name}.bias") if self._variant[2] else None
        if weight.dim() == 2:
            return F.linear(h, weight, bias)
        h = h.expand(len(weight), *h.shape[-2:])
        return torch.bmm(h, weight.mT) if bias is None else torch.baddbmm(bias.unsqueeze(1), h, weight.mT)
