"""Networks, the estimators and the random streams in float64, from the formulas and the tensors' names alone.

Parameters are a mapping from state-dict names to tensors; nothing here knows of CreditGrid.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from recompute_layers import Tensors, activated, branch, described, embed, head, layer_norm
from torch import Tensor

Arrays: TypeAlias = Mapping[str, np.ndarray[Any, Any]]


def doubles(arrays: Arrays) -> dict[str, Tensor]:
    """Floats as float64, labels and pixels as they are."""
    return {
        name: torch.from_numpy(np.array(a)).double() if a.dtype == np.float32 else torch.from_numpy(np.array(a))
        for name, a in arrays.items()
    }


def network(params: Mapping[str, Any], arrays: Arrays) -> dict[str, Tensor]:
    """The parameters of a checkpoint, and what the cell's say of its network."""
    return {**doubles(arrays), **described(params)}


def stream(seed: int, name: str, index: int) -> torch.Generator:
    """The generator of a named stream."""
    text = f"{seed}/{name}/{index}"
    return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1)


def depth(p: Tensors) -> int:
    return len({name.split(".")[1] for name in p if name.startswith("blocks.")})


def hiddens_from(p: Tensors, layer: int, h: Tensor, residual_add: bool) -> list[Tensor]:
    """h_layer … h_L."""
    found = [h]
    for block in range(layer, depth(p)):
        step = branch(p, block, found[-1])
        found.append(found[-1] + step if residual_add else step)
    return found


def hiddens(p: Tensors, x: Tensor, residual_add: bool = True) -> list[Tensor]:
    """h_0 … h_L."""
    return hiddens_from(p, 0, embed(p, x), residual_add)


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Of each sample."""
    return torch.logsumexp(logits, -1) - logits[torch.arange(len(y)), y]


def losses_from(p: Tensors, layer: int, h: Tensor, y: Tensor, residual_add: bool) -> Tensor:
    """The loss of each sample, run forward from h_layer."""
    return cross_entropy(head(p, hiddens_from(p, layer, h, residual_add)[-1]), y)


def loss(p: Tensors, x: Tensor, y: Tensor, residual_add: bool) -> float:
    return cross_entropy(head(p, hiddens(p, x, residual_add)[-1]), y).mean().item()


def accuracy(p: Tensors, x: Tensor, y: Tensor, residual_add: bool) -> float:
    return (head(p, hiddens(p, x, residual_add)[-1]).argmax(-1) == y).double().mean().item()


def loss_gradient(p: Tensors, layer: int, h: Tensor, y: Tensor, residual_add: bool) -> Tensor:
    """∂CE/∂h_layer, each sample's own."""
    leaf = h.detach().requires_grad_()
    return torch.autograd.grad(losses_from(p, layer, leaf, y, residual_add).sum(), leaf)[0]


def output_error(p: Tensors, last: Tensor, y: Tensor) -> Tensor:
    """e_T = softmax(logits) - onehot(y) of terminal states h_L."""
    logits = head(p, last)
    return (torch.softmax(logits, -1) - torch.nn.functional.one_hot(y, logits.shape[-1])).detach()


def estimator_output(e: Tensors, h: Tensor, t: float, s: Tensor) -> Tensor:
    frequencies = torch.tensor([math.exp(-math.log(10000) * i / 16) for i in range(16)], dtype=torch.float64)
    time = torch.cat([torch.sin(t * frequencies), torch.cos(t * frequencies)]).expand(len(h), 32)
    z = torch.cat([layer_norm(h, e["ln.weight"], e["ln.bias"]), time, s], -1)
    for index in (0, 2, 4):
        z = activated(z @ e[f"net.{index}.weight"].T + e[f"net.{index}.bias"])
    return z @ e["net.6.weight"].T + e["net.6.bias"]


def images_in_file_order(data: Tensors, first: int, count: int) -> tuple[Tensor, Tensor]:
    """``count`` test images, normalised per channel and flattened, with their labels; fewer at the end."""
    pixels = data["x_test"][first : first + count].double() / 255
    x = (pixels - data["mean"].view(-1, 1, 1)) / data["std"].view(-1, 1, 1)
    return x.flatten(1), data["y_test"][first : first + count]
