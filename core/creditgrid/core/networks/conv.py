"""A small convolutional network."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from creditgrid.core.networks.patches import PatchNetwork
from creditgrid.core.units.network import Size
from creditgrid.core.units.shape import Shape

if TYPE_CHECKING:
    import torch

    from creditgrid.core.science.network import ResidualNetwork


class Conv(PatchNetwork):
    """Residual blocks of two convolutions on a grid of patches; d_hidden is the number of channels.

    F_l(h) = w2(GELU(w1(norm(h)))), where w1 and w2 are convolutions. The head is the mean over the grid of a norm, and
    a linear layer. Norms are group norms with one group.
    """

    name: ClassVar = "conv"

    kernel: int = Field(3, ge=1, le=15, description="Side of the blocks' kernels, an odd number.")

    def conflicts(self, image_shape: tuple[int, int, int] | None) -> Iterable[tuple[str, str]]:
        yield from super().conflicts(image_shape)
        if self.kernel % 2 == 0:
            yield "kernel", f"kernel is {self.kernel}, and must be odd: the grid keeps its size"

    def hidden_shape(self, d_hidden: int) -> tuple[int, ...]:
        return d_hidden, self.grid, self.grid

    def build(self, size: Size, generator: torch.Generator | None) -> ResidualNetwork:
        import torch

        from creditgrid.core.science.image_blocks import ConvBlock, ConvHead, Patches
        from creditgrid.core.science.modular_network import ModularNetwork, initialise

        patch, d = self.patch(size), size.d_hidden
        with torch.device("meta"):
            embed = Patches(size.image_shape[0], d, patch)
            blocks = [ConvBlock(d, self.kernel) for _ in range(size.num_blocks)]
            head = ConvHead(d, size.num_classes)
        network = ModularNetwork(size, self.hidden_shape(d), embed, blocks, head)
        initialise(network, generator, last=[block.w2 for block in blocks], std=size.w2_std)
        return network

    def shape(self, size: Size) -> Shape:
        d, cells, stem = size.d_hidden, self.grid**2, self.stem_weights(size)
        weights = self.kernel**2 * d * d
        return Shape(
            input_dim=size.image_shape[0] * size.image_shape[1] * size.image_shape[2],
            hidden=d * cells,
            blocks=size.num_blocks,
            classes=size.num_classes,
            embed_flops=2.0 * stem * cells,
            branch_flops=4.0 * weights * cells,
            head_flops=2.0 * d * size.num_classes,
            embed_parameters=stem + d,
            block_parameters=2 * (weights + d) + 2 * d,
            head_parameters=2 * d + (d + 1) * size.num_classes,
        )
