"""Protocols, section 6 (Local updates): the direction of each block's step on its own loss, given a credit.

All directions come from one set of hidden states, before any step, and do not depend on the step size. With h_l and a_l
detached, block l steps on the gradient of the local loss of an update rule (``core.rules``), and the head on that of
CE_mean(out_head(out_ln(h_L)), y). A step is plain SGD, p <- p - η g with g = clamp(∇ + σ ξ) + λ p. In a trust region of
radius r a step that would be longer than r, over all parameters together, is shortened to it: η becomes r/‖g‖₂.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from creditgrid.core.errors import TaskError
from creditgrid.core.science.choices import UpdateRange
from creditgrid.core.science.functional import Layers
from creditgrid.core.science.network import ResidualNetwork
from creditgrid.core.science.per_sample import cross_entropy
from creditgrid.core.science.random_streams import generator
from creditgrid.core.units.rule import Rule

OutputGradients: TypeAlias = Callable[[Sequence[Tensor]], Sequence[Tensor]]


def update_blocks(update_range: UpdateRange, num_blocks: int) -> range:
    """The blocks of an update range: last1 = {L-1}, last2 = {L-2, L-1}, all; at most all blocks."""
    counts = {"last1": 1, "last2": 2, "all": num_blocks}
    return range(max(0, num_blocks - counts[update_range]), num_blocks)


def output_gradient(rule: Rule, branch: Tensor, credit: Tensor) -> Tensor:
    """∂loss_l/∂F of a rule, detached: F = F_l(h_l) (…, b, n) and a_l (…, b, n) -> (…, b, n).

    Raises:
        TaskError: the rule returns another shape.
    """
    found = rule.output_gradient(branch, credit)
    if not isinstance(found, Tensor) or found.shape != branch.shape:
        shown = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise TaskError(f"the output gradient of {rule.name} is {shown}: return a tensor {tuple(branch.shape)}")
    return found.detach()


def update_length(gradients: Iterable[Tensor], *, side_by_side: bool = False) -> Tensor:
    """‖g‖₂ over all parameters together, in double precision: (), or (S,) of S networks side by side."""
    parts = [gradient.flatten(1) if side_by_side else gradient.flatten() for gradient in gradients]
    squares = [torch.linalg.vector_norm(part, dim=-1, dtype=torch.float64).square() for part in parts]
    return torch.stack(squares).sum(0).sqrt()


def local_direction(
    network: ResidualNetwork,
    hiddens: Sequence[Tensor],
    credits: Tensor,
    y: Tensor,
    blocks: Sequence[int],
    *,
    update_head: bool,
    rule: Rule,
) -> dict[str, Tensor]:
    """The gradients ∇ of the local losses by parameter name ("blocks.3.w1.weight", …); a step subtracts η ∇.

    ``hiddens`` h_0 … h_L (b, d), ``y`` int64 (b,); ``credits`` (L, b, d), or those of the last layers alone, are used
    as they are. The result holds the parameters of ``blocks`` and, with ``update_head``, those of the head.
    The network does not change; its parameters may be frozen or not.
    """
    names = network.parameter_names(blocks, head=update_head)
    parameters = {name: network.get_parameter(name).detach() for name in names}

    def gradients_at(branches: Sequence[Tensor]) -> list[Tensor]:
        return [
            output_gradient(rule, branch, credits[layer - network.num_blocks])
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
