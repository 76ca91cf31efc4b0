"""Local updates: the direction in which each block steps on its own loss, given a credit.

All directions are taken from one set of hiddens, before any step, and do not depend on the step size. With
loss_l = mean_b ⟨F_l(h_l), a_l⟩ (h_l and a_l detached), block l steps on ∇loss_l and the head on
∇CE_mean(out_head(out_ln(h_L)), y); a step is plain SGD, p <- p - η ∇.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.func import functional_call

from creditgrid.core.metrics import cross_entropy, rms
from creditgrid.core.network import ResidualMLP

UpdateRange = Literal["last1", "last2", "all"]
NormMode = Literal["raw", "norm"]


def inner_product(branch: Tensor, credit: Tensor) -> Tensor:
    """mean_b ⟨F_l(h_l), a_l⟩: (b, d), (b, d) -> scalar."""
    return (branch * credit).sum(-1).mean()


RULES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {"inner_product": inner_product}


def update_blocks(update_range: UpdateRange, num_blocks: int) -> range:
    """The blocks of an update range: last1 = {L-1}, last2 = {L-2, L-1}, all; never more than there are."""
    counts = {"last1": 1, "last2": 2, "all": num_blocks}
    return range(max(0, num_blocks - counts[update_range]), num_blocks)


def normalise_credit(credit: Tensor) -> Tensor:
    """a / RMS(a) per sample, RMS(a) = sqrt(mean(a², -1)) + 1e-6: (…, d) -> (…, d)."""
    return credit / rms(credit).unsqueeze(-1)


def local_direction(
    network: ResidualMLP,
    hiddens: Sequence[Tensor],
    credits: Tensor,
    y: Tensor,
    blocks: Sequence[int],
    *,
    update_head: bool,
    rule: str = "inner_product",
) -> dict[str, Tensor]:
    """The gradients ∇ of the local losses by parameter name ("blocks.3.w1.weight", …); a step subtracts η ∇.

    ``hiddens`` h_0 … h_L (b, d), ``credits`` (L, b, d) used as they are, ``y`` int64 (b,). The result holds the
    parameters of ``blocks`` and, with ``update_head``, those of ``out_ln`` and ``out_head``. The network is neither
    changed nor marked: its parameters may be frozen or not.

    Raises:
        KeyError: for an unknown rule.
    """
    parameters: dict[str, Tensor] = {}

    def branch(name: str, h: Tensor) -> Tensor:
        module = network.get_submodule(name)
        leaves = {key: p.detach().requires_grad_() for key, p in module.named_parameters()}
        parameters.update({f"{name}.{key}": leaf for key, leaf in leaves.items()})
        return functional_call(module, leaves, (h,))  # type: ignore[no-any-return]

    with torch.enable_grad():
        losses = [
            RULES[rule](branch(f"blocks.{layer}", hiddens[layer].detach()), credits[layer].detach()) for layer in blocks
        ]
        if update_head:
            logits = branch("out_head", branch("out_ln", hiddens[-1].detach()))
            losses.append(cross_entropy(logits, y).mean())
        # No parameter is in two losses, so the gradient of the sum is each one's own.
        gradients = torch.autograd.grad(torch.stack(losses).sum(), list(parameters.values()))
    return dict(zip(parameters, gradients, strict=True))
