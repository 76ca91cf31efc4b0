"""A small vision transformer."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from creditgrid.core.networks.patches import PatchNetwork
from creditgrid.core.units.network import Size
from creditgrid.core.units.shape import Shape

if TYPE_CHECKING:
    import torch

    from creditgrid.core.science.network import ResidualNetwork


class Transformer(PatchNetwork):
    """Pre-norm blocks of attention and an MLP on the tokens of patches; d_hidden is a token's width.

    F_l(h) = a + w2(GELU(w1(ln2(h + a)))) with a = out(attention(ln1(h))). Tokens get learned positions in the stem; the
    head is the mean over the tokens of a layer norm, and a linear layer.
    """

    name: ClassVar = "transformer"

    grid: int = Field(4, ge=1, le=64, description="Patches along each side of the image; grid² is the tokens' number.")
    heads: int = Field(4, ge=1, le=64, description="Attention heads of a block.")
    head_width: int = Field(16, ge=1, le=1024, description="Numbers in a query, key or value of a head.")
    expansion: int = Field(2, ge=1, le=64, description="Inner width of a block's MLP, in multiples of d_hidden.")

    def hidden_shape(self, d_hidden: int) -> tuple[int, ...]:
        return self.grid**2, d_hidden

    def build(self, size: Size, generator: torch.Generator | None) -> ResidualNetwork:
        import torch

        from creditgrid.core.science.image_blocks import AttentionBlock, TokenHead, Tokens
        from creditgrid.core.science.modular_network import ModularNetwork, initialise

        patch, d = self.patch(size), size.d_hidden
        with torch.device("meta"):
            embed = Tokens(size.image_shape[0], d, patch, self.grid**2)
            blocks = [AttentionBlock(d, self.heads, self.head_width, self.expansion) for _ in range(size.num_blocks)]
            head = TokenHead(d, size.num_classes)
        network = ModularNetwork(size, self.hidden_shape(d), embed, blocks, head)
        ends = [end for block in blocks for end in (block.out, block.w2)]
        initialise(network, generator, last=ends, std=size.w2_std)
        return network

    def shape(self, size: Size) -> Shape:
        d, tokens, stem = size.d_hidden, self.grid**2, self.stem_weights(size)
        inner, wide = self.heads * self.head_width, self.expansion * d
        weights = 4 * d * inner + 2 * d * wide
        return Shape(
            input_dim=size.image_shape[0] * size.image_shape[1] * size.image_shape[2],
            hidden=d * tokens,
            blocks=size.num_blocks,
            classes=size.num_classes,
            embed_flops=2.0 * stem * tokens,
            branch_flops=2.0 * weights * tokens + 4.0 * tokens * tokens * inner,
            head_flops=2.0 * d * size.num_classes,
            embed_parameters=stem + d + tokens * d,
            block_parameters=weights + 3 * inner + d + wide + d + 4 * d,
            head_parameters=2 * d + (d + 1) * size.num_classes,
        )
