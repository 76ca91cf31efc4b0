"""Rollouts: several steps of Protocols, section 6 (Local updates), in a row, each on the next batch by a new credit.

A serial rollout copies the network and steps it, once a cell. Here the networks of one checkpoint's rollouts are side
by side, one tensor (S, *shape) for each parameter: a step is one batched forward pass, one credit for each source, and
one backward pass for all. Rollouts that differ only in their length are one rollout, measured at each length. Layers
below the first updated block never change, so the hidden states that enter it are computed once.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from creditgrid.core.science.choices import NormMode
from creditgrid.core.science.credit_sources import CreditSource
from creditgrid.core.science.measuring import Update
from creditgrid.core.science.network import ResidualNetwork
from creditgrid.core.science.per_sample import cross_entropy, normalise_credit
from creditgrid.core.science.updates import (
    differentiate,
    noise,
    output_gradient,
    update_length,
)
from creditgrid.core.units.rule import Rule

CHUNK_BYTES = 64 * 2**20
"""Memory for the parameters and gradients of a chunk of rollouts."""


OnUpdate: TypeAlias = Callable[[int, int, Update], None]
"""Called with the position of a rollout, a number of steps, and what makes the update of all these steps together."""


class Rollout(NamedTuple):
    """How one rollout steps: g = clamp(∇ + σ ξ, ±clamp) + λ p, then p <- p - η g, for each updated parameter p.

    If a step is longer than the radius, it is shortened to it.
    """

    source: str
    rule: Rule
    norm_mode: NormMode
    eta: float
    clamp: float | None = None
    weight_decay: float = 0.0
    """λ"""
    noise: float = 0.0
    """σ"""
    radius: float | None = None


def rollouts(  # noqa: PLR0917 (what steps, and the batches it steps on)
    network: ResidualNetwork,
    sources: Mapping[str, CreditSource],
    wanted: Sequence[Rollout],
    x_steps: Tensor,
    y_steps: Tensor,
    measured_on: Mapping[str, tuple[Tensor, Tensor]],
    blocks: Sequence[int],
    noise_seed: int = 0,
    measured_after: Sequence[int] | None = None,
    on_update: OnUpdate | None = None,
) -> dict[str, Tensor]:
    """Mean cross-entropies along each rollout, on each batch of ``measured_on``: float64 (S, k + 1) by its name.

    Column i is the loss after i steps; with ``measured_after``, after those numbers of steps: (S, len(measured_after)).

    Step i = 0…k-1 is taken on x_steps[i] (n, D), y_steps[i] (n,): hidden states, credits and the gradients of all
    ``blocks`` and of the head come from one forward pass of the current network; estimators and feedback are frozen.
    Rollouts are independent: one that diverges does not affect another. ``on_update`` is called after each of these
    numbers of steps, for each rollout.

    Raises:
        KeyError: when ``sources`` lacks the source of a rollout.
        TaskError: a method or a rule returns another shape.
    """
    after = range(len(x_steps) + 1) if measured_after is None else measured_after
    losses = {name: torch.empty(len(wanted), len(after), dtype=torch.float64) for name in measured_on}
    first = min(blocks, default=network.num_blocks - 1)
    with torch.no_grad():
        entering = {name: network(x, return_hidden=True)[1][first] for name, (x, _) in measured_on.items()}
        below = torch.stack(network(x_steps, return_hidden=True)[1][: first + 1], dim=1)  # (k, first + 1, n, d)
    # Rollouts of one source are neighbours, so one call on a slice computes their credits.
    order = sorted(range(len(wanted)), key=lambda position: wanted[position].source)
    names = network.parameter_names(blocks, head=True)
    for chunk in _chunks(network, names, x_steps.shape[1], order):
        stack = _Stack(network, names, [wanted[position] for position in chunk])
        for step in range(len(x_steps) + 1):
            if step in after:
                if on_update is not None:
                    for place, position in enumerate(chunk):
                        on_update(position, step, partial(stack.update, place))
                for name, (_, y) in measured_on.items():
                    losses[name][chunk, after.index(step)] = stack.losses(entering[name], y, first).cpu()
            if step < len(x_steps):
                drawn = dict(noise(network, noise_seed, step)) if stack.noisy else {}
                stack.step(below[step], y_steps[step], sources, blocks, drawn)
    return losses


class _Stack:
    """The networks of several rollouts, side by side."""

    def __init__(self, network: ResidualNetwork, names: Sequence[str], wanted: Sequence[Rollout]) -> None:
        self._wanted, self._before = wanted, network
        self.noisy = any(rollout.noise for rollout in wanted)
        frozen = {name: p.detach().expand(len(wanted), *p.shape) for name, p in network.named_parameters()}
        self._moved = {name: frozen[name].clone() for name in names}  # each step changes these in place
        parameters = frozen | self._moved
        self._network = network.with_parameters(parameters.__getitem__)

        def column(values: Sequence[float]) -> Tensor:
            return torch.tensor(values, dtype=network.dtype).to(network.device)

        self._eta = column([rollout.eta for rollout in wanted])
        self._decay = column([rollout.weight_decay for rollout in wanted])
        self._noise = column([rollout.noise for rollout in wanted])
        bounds = [math.inf if rollout.clamp is None else rollout.clamp for rollout in wanted]
        self._clamp = column(bounds) if min(bounds) < math.inf else None
        radii = [math.inf if rollout.radius is None else rollout.radius for rollout in wanted]
        self._radius = column(radii) if min(radii) < math.inf else None

    def update(self, place: int) -> dict[str, Tensor]:
        """The change of each moved parameter of one network since before the first step."""
        return {name: moved[place] - self._before.get_parameter(name).detach() for name, moved in self._moved.items()}

    @torch.no_grad()
    def losses(self, h: Tensor, y: Tensor, first: int) -> Tensor:
        """Mean cross-entropy of each network on a batch that enters block ``first`` as h (n, d): float64 (S,)."""
        hiddens = self._network.hiddens(h, first)
        return cross_entropy(self._network.head(hiddens[-1]), y).double().mean(-1)

    @torch.no_grad()
    def step(
        self,
        below: Tensor,
        y: Tensor,
        sources: Mapping[str, CreditSource],
        blocks: Sequence[int],
        drawn: Mapping[str, Tensor],
    ) -> None:
        """One local step of every network on one batch; ``below`` is h_0 … h_first (first + 1, n, d), equal in all."""
        first = len(below) - 1
        hiddens = [h.expand(len(self._wanted), *h.shape) for h in below]
        hiddens += self._network.hiddens(hiddens[-1], first)[1:]
        logits = self._network.head(hiddens[-1])
        credits = torch.cat(
            [
                sources[name].credits(self._network.part(part), [h[part] for h in hiddens], logits[part], y, first)
                for name, part in self._runs()
            ],
            dim=1,
        )

        def gradients_at(branches: Sequence[Tensor]) -> list[Tensor]:
            return [
                self._upstream(branch, credits[layer - first]) for layer, branch in zip(blocks, branches, strict=True)
            ]

        gradients = differentiate(self._moved, self._network, hiddens, y, blocks, gradients_at)
        for name, gradient in gradients.items():
            parameter = self._moved[name]
            shape = (-1, *[1] * (parameter.dim() - 1))
            if drawn:
                gradient.addcmul_(drawn[name], self._noise.view(shape))
            if self._clamp is not None:
                bound = self._clamp.view(shape)
                gradient.clamp_(-bound, bound)
            gradient.addcmul_(parameter, self._decay.view(shape))
        eta = self._eta
        if self._radius is not None:
            eta = eta.minimum((self._radius / update_length(gradients.values(), side_by_side=True)).to(eta))
        for name, gradient in gradients.items():
            parameter = self._moved[name]
            parameter.addcmul_(gradient, eta.view(-1, *[1] * (parameter.dim() - 1)), value=-1)

    def _runs(self) -> Iterator[tuple[str, slice]]:
        """The sources in order, each with the networks that step by its credits."""
        start = 0
        for stop in range(1, len(self._wanted) + 1):
            name = self._wanted[start].source
            if stop == len(self._wanted) or self._wanted[stop].source != name:
                yield name, slice(start, stop)
                start = stop

    def _upstream(self, branch: Tensor, credit: Tensor) -> Tensor:
        """∂loss_l/∂F_l of each rollout by its rule: (S, b, d)."""
        out = torch.empty_like(branch)
        alike: dict[tuple[Rule, NormMode], list[int]] = defaultdict(list)
        for position, rollout in enumerate(self._wanted):
            alike[rollout.rule, rollout.norm_mode].append(position)
        for (rule, norm_mode), positions in alike.items():
            own = credit[positions]
            if norm_mode == "norm" and not rule.normalises:  # twice differs from once
                own = normalise_credit(own)
            out[positions] = output_gradient(rule, branch[positions], own)
        return out


def _chunks(network: ResidualNetwork, names: Sequence[str], samples: int, order: Sequence[int]) -> Iterator[list[int]]:
    """As many rollouts at a time as fit in CHUNK_BYTES: parameters, gradients, and about six activations a block."""
    floats = 2 * sum(network.get_parameter(name).numel() for name in names)
    floats += 6 * network.num_blocks * samples * network.hidden_size
    size = max(1, CHUNK_BYTES // (floats * network.dtype.itemsize))
    for start in range(0, len(order), size):
        yield list(order[start : start + size])
