"""The shape of a network as its cost sees it: counts of parameters and floating-point operations."""

from __future__ import annotations

from typing import NamedTuple


class Shape(NamedTuple):
    """Counts for one network; operations are for one sample, forward.

    ``hidden`` is the number of elements of a hidden state, ``input_dim`` that of an image.
    """

    input_dim: int
    hidden: int
    blocks: int
    classes: int
    embed_flops: float
    branch_flops: float
    head_flops: float
    embed_parameters: int
    block_parameters: int
    head_parameters: int

    @property
    def parameters(self) -> int:
        """All parameters."""
        return self.embed_parameters + self.blocks * self.block_parameters + self.head_parameters
