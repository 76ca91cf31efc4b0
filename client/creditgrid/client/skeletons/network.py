"""my_unit: a residual network whose blocks see a hidden state of your own shape.

A network is h_0 = embed(x), h_{l+1} = h_l + F_l(h_l), logits = readout(h_L). Replace the modules by yours; then
`creditgrid check my_unit.py`.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from pydantic import Field
from torch import nn

from creditgrid.core.science.modular_network import ModularNetwork, initialise
from creditgrid.core.science.network import ResidualNetwork
from creditgrid.core.units.network import Network, Size

GROUPS = 4


class MyUnit(Network):
    """Blocks of two linear layers on groups of features."""  # the first line is the title

    name: ClassVar = "my_unit"

    # Each field is a parameter in specs, under its alias or its name: a type, bounds, and a description with the unit.
    expansion: int = Field(2, alias="my_unit_expansion", ge=1, le=64, description="Inner width, in units of d_hidden.")

    # The shape of one image's hidden state; it does not depend on the image. Credits have the same shape.
    def hidden_shape(self, d_hidden: int) -> tuple[int, ...]:
        return GROUPS, d_hidden

    # generator is None where nothing is drawn. size has image_shape, num_classes, num_blocks, d_hidden and w2_std, the
    # standard deviation of the last layer of each branch. No sample may depend on another: no batch norm.
    def build(self, size: Size, generator: torch.Generator | None) -> ResidualNetwork:
        d, inner, shape = size.d_hidden, size.d_hidden * self.expansion, self.hidden_shape(size.d_hidden)
        pixels = math.prod(size.image_shape)
        with torch.device("meta"):  # `initialise` draws the parameters, from the generator alone
            embed = nn.Sequential(nn.Flatten(), nn.Linear(pixels, GROUPS * d), nn.Unflatten(1, shape))
            ends = [nn.Linear(inner, d) for _ in range(size.num_blocks)]
            blocks = [nn.Sequential(nn.LayerNorm(d), nn.Linear(d, inner), nn.GELU(), end) for end in ends]
            readout = nn.Sequential(nn.LayerNorm(d), nn.Flatten(), nn.Linear(GROUPS * d, size.num_classes))
        network = ModularNetwork(size, shape, embed, blocks, readout)
        initialise(network, generator, last=ends, std=size.w2_std)
        return network
