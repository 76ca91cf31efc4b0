"""Networks, feedback and data on a device, made from the arrays of their artifacts."""

from __future__ import annotations

import torch
from torch import Tensor

from creditgrid.core.errors import TaskError
from creditgrid.core.science.data import ImageData
from creditgrid.core.science.network import ResidualNetwork
from creditgrid.core.task import Arrays
from creditgrid.core.units.known import installed
from creditgrid.core.units.network import Network, network_of


def checkpoint_network(
    arrays: Arrays, device: torch.device, *, residual_add: bool, network: Network | None = None
) -> ResidualNetwork:
    """The frozen network of a checkpoint, in eval mode; its tensors give its size. Without ``network``: the default.

    Raises:
        TaskError: when the tensors are not those of the network.
    """
    chosen = network_of({}, installed()) if network is None else network
    try:
        with torch.device("meta"):  # draws nothing: the parameters are assigned below
            built = chosen.build(chosen.size_of(arrays, residual_add=residual_add), None)
        built.load_state_dict(tensors(arrays), assign=True)
    except (RuntimeError, KeyError) as error:
        raise TaskError(f"the checkpoint's tensors do not fit the network {chosen.name}: {error}") from error
    return built.to(device).eval().requires_grad_(False)


def feedback_stack(arrays: Arrays, device: torch.device) -> Tensor:
    """The matrices B_0 … B_{L-1} of a feedback artifact: (L, d, C)."""
    matrices = tensors(arrays, device)
    return torch.stack([matrices[f"B.{layer}"] for layer in range(len(matrices))])


def image_data(arrays: Arrays, device: torch.device) -> ImageData:
    """The data set of a data artifact."""
    return ImageData.from_arrays(arrays).to(device)


def tensors(arrays: Arrays, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """The arrays as tensors on a device. On the CPU they are copies only where the memory is shared and read-only."""
    return {name: torch.from_numpy(a if a.flags.writeable else a.copy()).to(device) for name, a in arrays.items()}
