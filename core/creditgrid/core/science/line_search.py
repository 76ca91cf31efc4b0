"""The fused line search: every step size of every update direction, measured in a few batched passes.

It measures the steps of Protocols, section 6 (Local updates). A serial search copies the network for each step size,
takes one step and runs two batches. Here

- hidden states and losses before the step are computed once, on the same and the held-out batch together;
- a direction depends neither on the step size nor, in block l, on the other blocks of the range, so each (credit, norm
  mode, rule) is differentiated once for all ranges;
- blocks below the update range do not change, so a candidate starts from the hidden states that enter the range;
- the candidates p - η ∇ of a direction are stacked over η, one block at a time, and batched matrix products run both
  batches through all of them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from creditgrid.core.science.choices import NormMode, UpdateRange
from creditgrid.core.science.functional import Functional
from creditgrid.core.science.network import ResidualNetwork
from creditgrid.core.science.per_sample import correct, cross_entropy, normalise_credit, rms
from creditgrid.core.science.updates import (
    local_direction,
    noise,
    update_blocks,
    update_length,
)
from creditgrid.core.units.rule import Rule

CHUNK_BYTES = 32 * 2**20
"""Memory for the weights and activations of a chunk of candidates: within a CPU's caches, and enough for a GPU."""


class Step(NamedTuple):
    """One candidate: p - η g with g = clamp(∇ + σ ξ, ±clamp) + λ p, where ∇ is the local direction that the rule gives
    for the credits named ``credits``. If the step is longer than the radius, it is shortened to it."""

    credits: str
    update_range: UpdateRange
    norm_mode: NormMode
    eta: float
    update_head: bool
    rule: Rule
    weight_decay: float = 0.0
    """λ"""
    noise: float = 0.0
    """σ"""
    clamp: float | None = None
    radius: float | None = None


OnUpdate: TypeAlias = Callable[[int, Mapping[str, Tensor]], None]
"""Called with the position of a step and its update: the change -η ∇ of each parameter that it moves."""


class StepResult(NamedTuple):
    """The result of a step. Losses are mean cross-entropies in nats; a delta is after minus before."""

    loss_before_same: float
    loss_after_same: float
    delta_loss_same: float
    delta_loss_held: float
    delta_acc_same: float
    credit_rms: float
    """Mean over the batch and over the blocks in range of RMS(a_l), before any normalisation."""


def line_search(  # noqa: PLR0917 (the two batches and what is measured on them)
    network: ResidualNetwork,
    x_same: Tensor,
    y_same: Tensor,
    x_held: Tensor,
    y_held: Tensor,
    credits: Mapping[str, Tensor],
    steps: Sequence[Step],
    noise_seed: int = 0,
    on_update: OnUpdate | None = None,
) -> list[StepResult]:
    """Measure each step on the batch of its direction ("same") and on a held-out one, in the order of ``steps``.

    The batches are x (b, D) and y int64 (b,), and may differ in size; ``credits`` maps a name to credits (L, b, d) of
    the same batch. ``noise_seed`` is the seed of the noise ξ, which all steps share. Losses are computed per sample in
    the network's dtype, differences and means in float64. Values that are not finite are returned as they are; the
    network does not change.

    With ``on_update``, the update of each step is made as well.

    Raises:
        KeyError: when ``credits`` lacks the name of a step's credits.
    """
    if not steps:
        return []
    b = len(y_same)
    y = torch.cat((y_same, y_held))
    with torch.no_grad():
        logits, hiddens = network(torch.cat((x_same, x_held)), return_hidden=True)
    losses, hits = cross_entropy(logits, y).double(), correct(logits[:b], y_same).double()

    # Steps that differ in eta alone share a direction and a range; ranges share directions too.
    groups: dict[Step, list[int]] = defaultdict(list)
    for position, step in enumerate(steps):
        groups[step._replace(eta=0.0)].append(position)
    directions = _directions(network, [h[:b] for h in hiddens], y_same, credits, list(groups))
    drawn = dict(noise(network, noise_seed, 0)) if any(group.noise for group in groups) else {}

    order: list[int] = []
    tables: list[Tensor] = []
    for group, positions in groups.items():
        order += positions
        blocks = update_blocks(group.update_range, network.num_blocks)
        direction = _regularised(network, directions[group.credits, group.norm_mode, group.rule], group, drawn)
        size = rms(credits[group.credits][blocks.start :]).mean(dtype=torch.float64)
        etas = torch.tensor([steps[position].eta for position in positions], dtype=logits.dtype).to(y.device)
        if group.radius is not None:
            moved = network.parameter_names(blocks, head=group.update_head)
            etas = etas.clamp(max=(group.radius / update_length(direction[name] for name in moved)).to(etas))
        if on_update is not None:
            names = network.parameter_names(blocks, head=group.update_head)
            for position, eta in zip(positions, etas, strict=True):
                on_update(position, {name: -eta * direction[name] for name in names})
        for chunk in torch.split(etas, _chunk_size(network, len(y))):
            candidates = _candidates(network, direction, chunk)
            with torch.no_grad():
                h = hiddens[blocks.start]
                for layer in blocks:
                    h = candidates.next(layer, h)
                after = (candidates if group.update_head else network).head(h)
            losses_after = cross_entropy(after, y).double()
            change = losses_after - losses
            columns = (
                losses[:b].mean().expand_as(chunk),
                losses_after[:, :b].mean(-1),
                change[:, :b].mean(-1),
                change[:, b:].mean(-1),
                correct(after[:, :b], y_same).double().mean(-1) - hits.mean(),
                size.expand_as(chunk),
            )
            tables.append(torch.stack(columns, -1))
    rows = dict(zip(order, torch.cat(tables).tolist(), strict=True))
    return [StepResult(*rows[position]) for position in range(len(steps))]


def _directions(
    network: ResidualNetwork,
    hiddens: Sequence[Tensor],
    y: Tensor,
    credits: Mapping[str, Tensor],
    groups: Sequence[Step],
) -> dict[tuple[str, NormMode, Rule], dict[str, Tensor]]:
    """One direction for each (credits, norm mode, rule): over the widest range, with the head if any group steps it."""
    wanted: dict[tuple[str, NormMode, Rule], list[Step]] = defaultdict(list)
    for group in groups:
        wanted[group.credits, group.norm_mode, group.rule].append(group)
    directions = {}
    for (name, norm_mode, rule), sharing in wanted.items():
        credit = credits[name]
        if norm_mode == "norm" and not rule.normalises:  # twice differs from once
            credit = normalise_credit(credit)
        blocks = max((update_blocks(group.update_range, network.num_blocks) for group in sharing), key=len)
        update_head = any(group.update_head for group in sharing)
        directions[name, norm_mode, rule] = local_direction(
            network, hiddens, credit, y, blocks, update_head=update_head, rule=rule
        )
    return directions


def _regularised(
    network: ResidualNetwork, direction: Mapping[str, Tensor], group: Step, drawn: Mapping[str, Tensor]
) -> Mapping[str, Tensor]:
    """clamp(∇ + σ ξ) + λ p."""
    if group.noise:
        direction = {name: torch.add(g, drawn[name], alpha=group.noise) for name, g in direction.items()}
    if group.clamp is not None:
        direction = {name: g.clamp(-group.clamp, group.clamp) for name, g in direction.items()}
    if group.weight_decay:
        decayed = ((name, g, network.get_parameter(name).detach()) for name, g in direction.items())
        direction = {name: torch.add(g, p, alpha=group.weight_decay) for name, g, p in decayed}
    return direction


def _candidates(network: ResidualNetwork, direction: Mapping[str, Tensor], etas: Tensor) -> Functional:
    """The networks p - η ∇ for S step sizes η, side by side; each parameter is computed when it is used."""

    def stepped(name: str) -> Tensor:
        parameter = network.get_parameter(name).detach()
        return torch.addcmul(parameter, direction[name], etas.view(-1, *[1] * parameter.dim()), value=-1)

    return network.with_parameters(stepped)


def _chunk_size(network: ResidualNetwork, samples: int) -> int:
    """How many candidates fit in CHUNK_BYTES: the weights of a block and about four activations each."""
    weights = max(sum(p.numel() for p in block.parameters() if p.dim() > 1) for block in network.blocks)
    return max(1, CHUNK_BYTES // (network.dtype.itemsize * (weights + 4 * samples * network.hidden_size)))
