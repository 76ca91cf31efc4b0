"""A network: an embedding, residual blocks whose inputs receive credits, and a head."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from creditgrid.core.errors import TaskError
from creditgrid.core.task import Arrays
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
    """Base of networks: h_0 = embed(x); h_{l+1} = h_l + F_l(h_l) for l = 0…L-1; logits = head(h_L).

    Most are a `ModularNetwork` of plain modules (`core.science.modular_network`).
    """

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

    def size_of(self, arrays: Arrays, *, residual_add: bool) -> Size:
        """The size of the network with these tensors, without its ``w2_std``: by default what `ModularNetwork` keeps.

        Raises:
            TaskError: they are those of another network.
        """
        if "size" not in arrays:
            raise TaskError(f"the checkpoint has no tensor 'size', so it is not one of the network {self.name}")
        channels, height, width, *numbers = arrays["size"].tolist()
        num_classes, num_blocks, d_hidden = numbers
        return Size((channels, height, width), num_classes, num_blocks, d_hidden, residual_add, 0.0)

    def shape(self, size: Size) -> Shape | None:  # noqa: ARG002
        """What the network costs: its counts of parameters and operations; None: nobody can know."""
        return None


def identity_of(network: Network) -> dict[str, Any] | None:
    """What the keys of a network's tasks hold: its name, its parameters besides the defaults, and its version.

    None for the default network with its defaults: keys from before there were others hold nothing of it.
    """
    said = network.model_dump(exclude_defaults=True)
    if network.version > 1:
        said["version"] = network.version
    return {"name": network.name, **said} if said or network.name != DEFAULT else None


class _Networks(Protocol):
    def network(self, name: str) -> type[Network]: ...


def network_of(params: Mapping[str, Any], units: _Networks) -> Network:
    """The network that a task's parameters choose, with its own parameters.

    Those of a cell name it flat, as a spec does. Those of a training or a fit hold nothing of the default network, and
    otherwise ``network``: its name, and its parameters besides the defaults.

    Raises:
        TaskError: the network is not known here, or a training or fit was planned with another version of it.
    """
    chosen = params.get("network", DEFAULT)
    if isinstance(chosen, str):
        return units.network(chosen).of(params)
    own = {name: value for name, value in chosen.items() if name not in ("name", "version")}
    network = units.network(chosen["name"])
    if (was := chosen.get("version", 1)) != network.version:
        raise TaskError(
            f"the task was planned with version {was} of the network {network.name}, which is {network.version} here, "
            "and gives another result: submit or retry the sweep, or install what the service has"
        )
    return network(**own)
