"""A network assembled from plain modules: what a network's file builds, shipped or brought."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from creditgrid.core.science.network import ResidualNetwork
from creditgrid.core.units.network import Size


class ModularNetwork(ResidualNetwork):
    """A residual network whose parts are modules on hidden states of their own shape, a batch (b, …) at a time.

    Its state dict also has the buffer ``size``, from which the network is built again: the numbers of `Size` without
    the last two, in order. Other buffers must be constants.

    Args:
        size: what the network was built for.
        hidden_shape: the shape of the hidden state of one image.
        embed: images (b, channels, height, width) -> (b, *hidden_shape).
        blocks: F_0 … F_{L-1}, each (b, *hidden_shape) -> (b, *hidden_shape).
        readout: (b, *hidden_shape) -> logits (b, C).
    """

    def __init__(
        self,
        size: Size,
        hidden_shape: tuple[int, ...],
        embed: nn.Module,
        blocks: Iterable[nn.Module],
        readout: nn.Module,
    ) -> None:
        super().__init__()
        self.image_shape = size.image_shape
        self.input_dim = math.prod(size.image_shape)
        self.hidden_shape = hidden_shape
        self.num_classes = size.num_classes
        self.num_blocks = size.num_blocks
        self.residual_add = size.residual_add
        self.embed = embed
        self.blocks = nn.ModuleList(blocks)
        self.readout = readout
        numbers = [*size.image_shape, size.num_classes, size.num_blocks, size.d_hidden]
        self.register_buffer("size", torch.tensor(numbers))

    def embedding(self, x: Tensor) -> Tensor:
        return self.embed(x.reshape(-1, *self.image_shape)).reshape(*x.shape[:-1], -1)  # type: ignore[no-any-return]

    def branch(self, layer: int, h: Tensor) -> Tensor:
        return self.blocks[layer](h.reshape(-1, *self.hidden_shape)).reshape(h.shape)  # type: ignore[no-any-return]

    def head(self, h: Tensor) -> Tensor:
        return self.readout(h.reshape(-1, *self.hidden_shape)).reshape(*h.shape[:-1], -1)  # type: ignore[no-any-return]


def initialise(
    network: nn.Module, generator: torch.Generator | None, *, last: Iterable[nn.Module] = (), std: float = 0.0
) -> None:
    """Draw the parameters of modules that were made on the meta device, in state-dict order; ``None`` draws nothing.

    Linear and convolutional layers get torch's default distribution, and norms their ones and zeros. The ``last``
    layers of the branches have weights N(0, std²) and biases 0. A parameter that belongs to none of torch's layers is
    drawn from N(0, 0.02²). All draws are from ``generator``, on its device.
    """
    if generator is None:
        return
    ends = set(last)
    for module in network.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            made = torch.empty_like(parameter, device=generator.device)
            setattr(module, name, nn.Parameter(_drawn(module, name, made, generator, std if module in ends else None)))


def _drawn(module: nn.Module, name: str, made: Tensor, generator: torch.Generator, end_std: float | None) -> Tensor:
    if end_std is not None:
        return made.zero_() if name == "bias" else made.normal_(0.0, end_std, generator=generator)
    if isinstance(module, nn.LayerNorm | nn.GroupNorm):
        return made.fill_(float(name == "weight"))
    weight = module.weight if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d) else None
    if weight is None:
        return made.normal_(0.0, 0.02, generator=generator)
    bound = 1 / math.sqrt(weight[0].numel())
    return made.uniform_(-bound, bound, generator=generator)
