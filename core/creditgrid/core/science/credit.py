"""Protocols, section 4 (Credit sources): a credit a_l (b, d) takes the place of the gradient of the loss at h_l.

h_l is the input of block l, l = 0…L-1.

================  =============================================================================================
``oracle_bp``     ∂CE/∂h_l by backprop
``dfa``           e_T B_lᵀ with fixed random matrices B_l (d, C)
``vec``           A(h_l, t_l, e_T), a fitted vector field
``scalar_cb``     ∂V(h_l, t_l, s)/∂h_l of a fitted scalar value V, with s = e_T or s = δ_L
``state_bridge``  ∂CE_sum(head(P(h_l, t_l, e_T)), y)/∂h_l of a fitted predictor P of the terminal state h_L
================  =============================================================================================

e_T = softmax(logits) - onehot(y), δ_L = ∂CE_sum/∂h_L per sample, t_l = l/L.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from creditgrid.core.science.choices import Method, Reduction, Signal
from creditgrid.core.science.estimators import EstimatorNet
from creditgrid.core.science.functional import Layers
from creditgrid.core.science.per_sample import cross_entropy
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


@dataclass(frozen=True)
class CreditSource:
    """A method, and what it needs to compute the credits of any batch.

    ``dfa`` needs ``feedback`` (L, d, C); ``vec``, ``scalar_cb`` and ``state_bridge`` need their fitted ``estimator``,
    and ``scalar_cb`` the ``s_source`` it was fitted with. ``oracle_reduction`` reduces the loss that ``oracle_bp``
    differentiates: ``mean`` over the batch (1/b of a per-sample gradient) or ``sum``, the scale at which the learned
    estimators work.
    """

    method: Method
    feedback: Tensor | None = None
    estimator: EstimatorNet | None = None
    s_source: Signal = "e_T"
    oracle_reduction: Reduction = "mean"

    def credits(self, network: Layers, hiddens: Sequence[Tensor], logits: Tensor, y: Tensor, first: int = 0) -> Tensor:
        """The credits a_0 … a_{L-1} of a batch, detached, (L, b, d); or (L, S, b, d) of S networks side by side.

        With ``first`` only a_first … a_{L-1}, (L - first, …): no credit needs the layers below it.

        ``hiddens`` h_0 … h_L, each (…, b, d), and ``logits`` (…, b, C) are those of ``network`` on the batch, ``y``
        int64 (b,) its labels.

        Raises:
            ValueError: for an unknown method, or one whose feedback or estimator is missing.
        """
        if self.method == "oracle_bp":
            scale = len(y) if self.oracle_reduction == "mean" else 1
            return _backprop(network, hiddens, terminal_gradient(network, hiddens[-1], y) / scale, first)
        error = output_error(logits, y)
        if self.method == "dfa":
            if self.feedback is None:
                raise ValueError("the credit dfa needs its feedback matrices")
            return torch.stack([error @ matrix.mT for matrix in self.feedback[first:]])
        if self.method not in ("vec", "scalar_cb", "state_bridge"):
            raise ValueError(
                f"unknown credit method {self.method!r}: one of oracle_bp, dfa, vec, scalar_cb, state_bridge"
            )
        if self.estimator is None:
            raise ValueError(f"the credit {self.method} needs its fitted estimator")
        h = torch.stack(list(hiddens[first:-1])).detach()
        t = layer_times(h, first)
        if self.method == "vec":
            with torch.no_grad():
                return self.estimator(h, t, error)  # type: ignore[no-any-return]
        with torch.enable_grad():
            leaf = h.requires_grad_()
            if self.method == "state_bridge":
                values = _head_loss(network, self.estimator(leaf, t, error), y)
            else:
                s = error if self.s_source == "e_T" else terminal_gradient(network, hiddens[-1], y)
                values = self.estimator(leaf, t, s)
            # Each value depends on its own h alone, so the gradient of the sum holds the gradient of each value.
            (gradient,) = torch.autograd.grad(values.sum(), leaf)
        return gradient

    def double(self) -> CreditSource:
        """A copy in double precision."""
        feedback = None if self.feedback is None else self.feedback.double()
        estimator = None if self.estimator is None else copy.deepcopy(self.estimator).double()
        return replace(self, feedback=feedback, estimator=estimator)


def layer_times(h: Tensor, first: int = 0) -> Tensor:
    """The depths t_l = l/L of stacked hidden states h_first … h_{L-1} (n, …, b, d), to broadcast against (n, …, b)."""
    depth = first + len(h)
    times = torch.arange(first, depth, dtype=h.dtype, device=h.device) / depth
    return times.view(-1, *[1] * (h.dim() - 2))


def _head_loss(network: Layers, terminal: Tensor, y: Tensor) -> Tensor:
    """CE of the head on predicted terminal states (L, b, d) or (L, S, b, d), per sample, in any order."""
    if terminal.dim() == 3:
        return cross_entropy(network.head(terminal), y)
    # Each of S networks has a head of its own for its samples of every layer: (S, L b, d).
    logits = network.head(terminal.transpose(0, 1).flatten(1, 2))
    return cross_entropy(logits, y.repeat(len(terminal)))


def _backprop(network: Layers, hiddens: Sequence[Tensor], terminal: Tensor, first: int) -> Tensor:
    """∂CE/∂h_l for l = first…L-1 by backprop of ``terminal``, ∂CE/∂h_L (…, b, d): (L - first, …, b, d)."""
    gradients = [terminal]
    for layer in reversed(range(first, network.num_blocks)):
        with torch.enable_grad():
            leaf = hiddens[layer].detach().requires_grad_()
            (of_branch,) = torch.autograd.grad(network.branch(layer, leaf), leaf, gradients[-1])
        gradients.append(gradients[-1] + of_branch if network.residual_add else of_branch)
    return torch.stack(gradients[:0:-1])
