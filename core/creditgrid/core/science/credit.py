"""What credits are made of: Protocols, section 4 (Credit sources).

A credit a_l (b, n) takes the place of the gradient of the loss at h_l, the input of block l = 0…L-1. A credit method
(``core.methods``) combines e_T = softmax(logits) - onehot(y), δ_L = ∂CE_sum/∂h_L per sample, t_l = l/L, the gradient
itself, and the matrices B_l of feedback alignment.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from creditgrid.core.science.functional import Layers
from creditgrid.core.science.random_streams import generator


def feedback_matrices(seed: int, num_blocks: int, d_hidden: int, num_classes: int) -> Tensor:
    """The fixed matrices B_l of direct feedback alignment, N(0, 1)/sqrt(C): float32 (L, d, C) on the CPU.

    B_l is drawn from the stream ("feedback", l), so it does not depend on the number of blocks. Protocols, section 3
    (Training); the method is Nøkland's (2016, Direct Feedback Alignment Provides Learning in Deep Neural Networks).
    """
    draws = [
        torch.randn(d_hidden, num_classes, generator=generator(seed, "feedback", layer)) for layer in range(num_blocks)
    ]
    return torch.stack(draws) / math.sqrt(num_classes)


def feedback_credits(feedback: Sequence[Tensor], error: Tensor, first: int = 0) -> Tensor:
    """e_T B_lᵀ for l = first…L-1, with e_T (…, b, C) and B_0 … B_{L-1}, each (n, C): (L - first, …, b, n)."""
    return torch.stack([error @ matrix.mT for matrix in feedback[first:]])


def output_error(logits: Tensor, y: Tensor) -> Tensor:
    """e_T = softmax(logits) - onehot(y), detached: logits (…, b, C), y int64 (b,) -> (…, b, C).

    The label's entry is minus the sum of the others: p - 1 would lose most digits of a confident sample's error, and
    a normalised credit would show it.
    """
    labels = y.expand(logits.shape[:-1]).unsqueeze(-1)
    others = logits.detach().softmax(-1).scatter(-1, labels, 0.0)
    return others.scatter(-1, labels, -others.sum(-1, keepdim=True))


def terminal_gradient(network: Layers, h_last: Tensor, y: Tensor) -> Tensor:
    """δ_L = ∂CE_sum(head(h_L), y)/∂h_L, each sample's own gradient, detached: (…, b, d) -> (…, b, d)."""
    with torch.enable_grad():
        leaf = h_last.detach().requires_grad_()
        logits = network.head(leaf)
        (gradient,) = torch.autograd.grad(logits, leaf, output_error(logits, y))  # which is ∂CE/∂logits
    return gradient


def layer_times(h: Tensor, first: int = 0) -> Tensor:
    """The depths t_l = l/L of stacked hidden states h_first … h_{L-1} (n, …, b, d), to broadcast against (n, …, b)."""
    depth = first + len(h)
    times = torch.arange(first, depth, dtype=h.dtype, device=h.device) / depth
    return times.view(-1, *[1] * (h.dim() - 2))


def backprop(network: Layers, hiddens: Sequence[Tensor], terminal: Tensor, first: int = 0) -> Tensor:
    """∂CE/∂h_l for l = first…L-1 by backprop of ``terminal``, ∂CE/∂h_L (…, b, n): (L - first, …, b, n), detached."""
    gradients = [terminal]
    for layer in reversed(range(first, network.num_blocks)):
        with torch.enable_grad():
            leaf = hiddens[layer].detach().requires_grad_()
            (of_branch,) = torch.autograd.grad(network.branch(layer, leaf), leaf, gradients[-1])
        gradients.append(gradients[-1] + of_branch if network.residual_add else of_branch)
    return torch.stack(gradients[:0:-1])
