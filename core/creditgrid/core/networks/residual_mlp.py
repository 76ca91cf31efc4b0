"""The residual MLP, and its variants."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from creditgrid.core.task import Arrays
from creditgrid.core.units.network import Network, Size
from creditgrid.core.units.shape import Shape

if TYPE_CHECKING:
    import torch

    from creditgrid.core.science import network


class ResidualMLP(Network):
    """Residual blocks of two linear layers. Protocols, section 1 (Network)."""

    name: ClassVar = "residual_mlp"

    activation: Literal["gelu", "relu", "tanh", "silu"] = Field(
        "gelu", description="Activation between a block's linear layers."
    )
    norm: Literal["pre", "post", "none"] = Field(
        "pre", description="Layer norm of a block: pre, before the first linear layer; post, after the last; or none."
    )
    expansion: int = Field(1, ge=1, le=64, description="Inner width of a block, in multiples of d_hidden.")
    bias: bool = Field(True, description="Whether the linear layers have biases.")

    def hidden_shape(self, d_hidden: int) -> tuple[int, ...]:
        return (d_hidden,)

    def build(self, size: Size, generator: torch.Generator | None) -> network.ResidualMLP:
        from creditgrid.core.science.network import ResidualMLP

        return ResidualMLP(
            math.prod(size.image_shape),
            size.d_hidden,
            size.num_classes,
            size.num_blocks,
            size.residual_add,
            size.w2_std,
            generator=generator,
            **self.model_dump(),
        )

    def size_of(self, arrays: Arrays, *, residual_add: bool) -> Size:
        d_hidden, input_dim = arrays["embed.weight"].shape
        blocks = {name.split(".")[1] for name in arrays if name.startswith("blocks.")}
        # The network takes flat images, so any shape with as many elements will do.
        return Size((1, 1, input_dim), len(arrays["out_head.weight"]), len(blocks), d_hidden, residual_add, 0.0)

    def shape(self, size: Size) -> Shape:
        dim, d, classes = math.prod(size.image_shape), size.d_hidden, size.num_classes
        inner, bias = self.expansion * d, int(self.bias)
        norm = 0 if self.norm == "none" else 2 * d
        return Shape(
            input_dim=dim,
            hidden=d,
            blocks=size.num_blocks,
            classes=classes,
            embed_flops=2.0 * dim * d,
            branch_flops=4.0 * d * inner,
            head_flops=2.0 * d * classes,
            embed_parameters=(dim + bias) * d,
            block_parameters=2 * d * inner + bias * (inner + d) + norm,
            head_parameters=2 * d + (d + bias) * classes,
        )
