"""Networks, estimators, feedback and data on a device, made from the arrays of their artifacts."""

from __future__ import annotations

import torch
from torch import Tensor

from creditgrid.core.errors import TaskError
from creditgrid.core.science.data import ImageData
from creditgrid.core.science.estimators import TIME_DIMS, EstimatorNet
from creditgrid.core.science.network import ResidualMLP
from creditgrid.core.task import Arrays


def checkpoint_network(arrays: Arrays, device: torch.device, *, residual_add: bool) -> ResidualMLP:
    """The frozen network of a checkpoint, in eval mode; its tensors give its shape.

    Raises:
        TaskError: when the tensors are not those of a residual MLP.
    """
    d_hidden, input_dim = arrays["embed.weight"].shape
    blocks = {name.split(".")[1] for name in arrays if name.startswith("blocks.")}
    with torch.device("meta"):  # draws nothing: the parameters are assigned below
        network = ResidualMLP(input_dim, d_hidden, len(arrays["out_head.bias"]), len(blocks), residual_add=residual_add)
    try:
        network.load_state_dict(tensors(arrays), assign=True)
    except RuntimeError as error:
        raise TaskError(f"the checkpoint's tensors do not fit a residual MLP: {error}") from error
    return network.to(device).eval().requires_grad_(False)


def fitted_estimator(arrays: Arrays, device: torch.device) -> EstimatorNet:
    """The frozen estimator of a fit; its tensors give its shape."""
    d_hidden, out_dim = len(arrays["ln.weight"]), len(arrays["net.6.bias"])
    s_dim = arrays["net.0.weight"].shape[1] - d_hidden - TIME_DIMS
    estimator = EstimatorNet(d_hidden, s_dim, out_dim, generator=torch.Generator())
    estimator.load_state_dict(tensors(arrays))
    return estimator.to(device).eval().requires_grad_(False)


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
