"""Protocols, section 6 (Local updates): the direction of each block's step on its own loss, given a credit.

All directions come from one set of hidden states, before any step, and do not depend on the step size. With h_l and a_l
detached, F = F_l(h_l) and â = a/RMS(a) per sample, block l steps on the gradient of

=================  ===========================================================
``inner_product``  mean_b ⟨F, a_l⟩
``target_shift``   ½ mean_b ‖h_l + F - stopgrad(h_{l+1} - κ â_l)‖²
``cosine``         mean_b cos(F, a_l)
=================  ===========================================================

(without the residual the prediction h_l + F is F alone), and the head on the gradient of
CE_mean(out_head(out_ln(h_L)), y). A step is plain SGD, p <- p - η ∇.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from creditgrid.core.science.choices import Rule, UpdateRange
from creditgrid.core.science.functional import Layers
from creditgrid.core.science.network import ResidualNetwork
from creditgrid.core.science.per_sample import cross_entropy, normalise_credit
from creditgrid.core.science.random_streams import generator

OutputGradients: TypeAlias = Callable[[Sequence[Tensor]], Sequence[Tensor]]


def update_blocks(update_range: UpdateRange, num_blocks: int) -> range:
    """The blocks of an update range: last1 = {L-1}, last2 = {L-2, L-1}, all; at most all blocks."""
    counts = {"last1": 1, "last2": 2, "all": num_blocks}
    return range(max(0, num_blocks - counts[update_range]), num_blocks)


def output_gradient(rule: Rule, branch: Tensor, credit: Tensor, kappa: float | None = None) -> Tensor:
    """∂loss_l/∂F of a rule: F = F_l(h_l) (…, b, d) and a_l (…, b, d) -> (…, b, d); target_shift computes â_l.

    The formulas replace a differentiation: the target of ``target_shift`` is so close to F that their difference, κ â,
    would lose most of its digits in single precision.

    Raises:
        ValueError: for an unknown rule, or target_shift without ``kappa``.
    """
    samples = branch.shape[-2]
    if rule == "inner_product":
        return credit / samples
    if rule == "target_shift":
        if kappa is None:
            raise ValueError("the rule target_shift needs its kappa")
        return normalise_credit(credit) * (kappa / samples)
    if rule == "cosine":
        along, towards = F.normalize(branch, dim=-1), F.normalize(credit, dim=-1)
        across = towards - (towards * along).sum(-1, keepdim=True) * along
        length: Tensor = branch.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        return across / (length * samples)
    raise ValueError(f"unknown update rule {rule!r}: one of inner_product, target_shift, cosine")


def local_direction(
    network: ResidualNetwork,
    hiddens: Sequence[Tensor],
    credits: Tensor,
    y: Tensor,
    blocks: Sequence[int],
    *,
    update_head: bool,
    rule: Rule = "inner_product",
    kappa: float | None = None,
) -> dict[str, Tensor]:
    """The gradients ∇ of the local losses by parameter name ("blocks.3.w1.weight", …); a step subtracts η ∇.

    ``hiddens`` h_0 … h_L (b, d), ``y`` int64 (b,); ``credits`` (L, b, d), or those of the last layers alone, are used
    as they are. The result holds the parameters of ``blocks`` and, with ``update_head``, those of the
    head. The network does not change; its parameters may be frozen or not.

    Raises:
        ValueError: for an unknown rule, or target_shift without ``kappa``.
    """
    names = network.parameter_names(blocks, head=update_head)
    parameters = {name: network.get_parameter(name).detach() for name in names}

    def gradients_at(branches: Sequence[Tensor]) -> list[Tensor]:
        return [
            output_gradient(rule, branch, credits[layer - network.num_blocks], kappa)
            for layer, branch in zip(blocks, branches, strict=True)
        ]

    return differentiate(parameters, network, hiddens, y, blocks, gradients_at)


def differentiate(  # noqa: PLR0917
    parameters: dict[str, Tensor],
    network: Layers,
    hiddens: Sequence[Tensor],
    y: Tensor,
    blocks: Sequence[int],
    output_gradients: OutputGradients,
) -> dict[str, Tensor]:
    """∇ of each of ``parameters``, which may be those of S networks side by side, (S, *shape).

    ``output_gradients`` maps F_l(h_l) of each of ``blocks`` to ∂loss_l/∂F_l. If ``parameters`` holds the head's, their
    gradient is that of the mean cross-entropy. Blocks are independent: each starts at its h_l.
    """
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in parameters.items()}
    local = network.with_parameters(leaves.__getitem__)
    with torch.enable_grad():
        outputs = [local.branch(layer, hiddens[layer].detach()) for layer in blocks]
        upstream = output_gradients([branch.detach() for branch in outputs])
        if any(not name.startswith("blocks.") for name in leaves):
            losses = cross_entropy(local.head(hiddens[-1].detach()), y).mean(-1)
            outputs, upstream = [*outputs, losses], [*upstream, torch.ones_like(losses)]
        # No parameter is in two losses, so each gradient is that of its own loss.
        gradients = torch.autograd.grad(outputs, list(leaves.values()), upstream)
    return dict(zip(leaves, gradients, strict=True))


def noise(network: ResidualNetwork, seed: int, step: int) -> Iterator[tuple[str, Tensor]]:
    """Gaussian noise ξ of one local step for every parameter above the embedding, by name: N(0, 1) of its shape.

    It is drawn on the CPU from the stream ("step/noise", step), in state-dict order and for all parameters, so it
    depends neither on the device nor on the updated parameters.
    """
    draws = generator(seed, "step/noise", step)
    for name in network.parameter_names(range(network.num_blocks), head=True):
        parameter = network.get_parameter(name)
        yield name, torch.randn(parameter.shape, generator=draws).to(parameter)
