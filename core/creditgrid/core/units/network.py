"""A network: an embedding, residual blocks whose inputs receive credits, and a head."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from creditgrid.core.units.unit import Unit

if TYPE_CHECKING:
    import torch

    from creditgrid.core.science.network import ResidualNetwork
    from creditgrid.core.units.shape import Shape


class Size(NamedTuple):
    """What every network is built from: images (channels, height, width), classes C, and the shared parameters.

    ``w2_std`` is the standard deviation of the initial weights of each branch's last layer, whose bias starts at 0.
    """

    image_shape: tuple[int, int, int]
    num_classes: int
    num_blocks: int
    d_hidden: int
    residual_add: bool
    w2_std: float


DEFAULT = "residual_mlp"
"""The network of a spec that names none."""


class Network(Unit):
    """Base of networks: h_0 = embed(x); h_{l+1} = h_l + F_l(h_l) for l = 0…L-1; logits = head(h_L)."""

    def build(self, size: Size, generator: torch.Generator | None) -> ResidualNetwork:
        """The initialised network. Every draw comes from ``generator``, on its device; on the meta device nothing is
        drawn, and ``generator`` is None.

        Raises:
            TaskError: the network cannot have this size.
        """
        raise NotImplementedError

    def hidden_shape(self, d_hidden: int) -> tuple[int, ...]:
        """The shape of the hidden state of one image, which does not depend on the image's size."""
        raise NotImplementedError

    def conflicts(self, image_shape: tuple[int, int, int] | None) -> Iterable[tuple[str, str]]:  # noqa: ARG002
        """Why the network cannot take such images, as (parameter to blame, what is wrong)."""
        return ()

    def shape(self, size: Size) -> Shape:
        """What the network costs: its counts of parameters and operations."""
        raise NotImplementedError


def identity_of(network: Network) -> dict[str, Any] | None:
    """What the keys of a network's tasks hold: its name, its parameters besides the defaults, and its version.

    None for the default network with its defaults: keys from before there were others hold nothing of it.
    """
    said = network.model_dump(exclude_defaults=True)
    if network.version > 1:
        said["version"] = network.version
    return {"name": network.name, **said} if said or network.name != DEFAULT else None
