"""The quality of a credit, layer by layer: Protocols, section 7 (Measurements of credit quality).

===========  =======================================================================================================
``gamma_l``  mean over the batch of cos(a_l, ∂CE/∂h_l), averaged over up to GAMMA_BATCHES test batches
``rho_l``    Pearson correlation, over all samples and RHO_DIRECTIONS directions v of unit length, of ⟨a_l, v⟩ with
             the central difference (CE(h_l + ε v) - CE(h_l - ε v))/2ε of the per-sample loss run forward from layer l
``nudge_l``  mean_b [CE(h_l - η a_l/‖a_l‖₂) - CE(h_l)] for each η of NUDGE_ETAS, run forward from layer l; negative is
             downhill
===========  =======================================================================================================

rho and nudge are measured on the first test batch. All sources share what does not depend on the credit: the gradients
and the central differences. Networks and sources are in double precision (`in_double`): in single precision, rounding
errors of the loss, divided by 2ε, would dominate the rho of a weak credit.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from creditgrid.core.science.credit import backprop, terminal_gradient
from creditgrid.core.science.credit_sources import CreditSource
from creditgrid.core.science.data import ImageData, normalise
from creditgrid.core.science.network import ResidualNetwork
from creditgrid.core.science.per_sample import central_differences, cosine, cross_entropy, unit, unit_directions
from creditgrid.core.science.random_streams import generator

GAMMA_BATCHES = 10
RHO_DIRECTIONS = 32
RHO_EPS = 1e-3
NUDGE_ETAS = (0.001, 0.003, 0.01)
CHUNK_BYTES = 4 * 2**20
"""Memory for one activation of the shifted hidden states: a CPU's caches hold a few of that size."""


def in_double(
    network: ResidualNetwork, sources: Mapping[str, CreditSource]
) -> tuple[ResidualNetwork, dict[str, CreditSource]]:
    """Copies of a network and of its credit sources, in double precision."""
    return copy.deepcopy(network).double(), {name: source.double() for name, source in sources.items()}


@dataclass(frozen=True)
class Batch:
    """A batch of test images x (b, D) with the hidden states h_0 … h_L (b, n) and logits (b, C) of a network."""

    x: Tensor
    hiddens: Sequence[Tensor]
    logits: Tensor
    y: Tensor


def file_batches(network: ResidualNetwork, data: ImageData, size: int, count: int | None = None) -> Iterator[Batch]:
    """The first ``count`` batches of the test set, or all: in file order, unaugmented; the last may be smaller."""
    end = len(data.y_test) if count is None else count * size
    pairs = zip(torch.split(data.x_test[:end], size), torch.split(data.y_test[:end], size), strict=True)
    for images, y in pairs:
        with torch.no_grad():
            x = normalise(images, data.mean, data.std).to(network.dtype)
            logits, hiddens = network(x, return_hidden=True)
        yield Batch(x, hiddens, logits, y)


def source_credits(network: ResidualNetwork, sources: Mapping[str, CreditSource], batch: Batch) -> dict[str, Tensor]:
    """The credits of every source on a test batch, by its name: (L, b, d) each."""
    return {name: source.credits(network, batch.hiddens, batch.logits, batch.y) for name, source in sources.items()}


def gamma(network: ResidualNetwork, sources: Mapping[str, CreditSource], batches: Sequence[Batch]) -> dict[str, Tensor]:
    """gamma_l of each source, mean over the batches of the mean over the samples: (L,)."""
    totals = {name: torch.zeros(network.num_blocks, dtype=torch.float64) for name in sources}
    for batch in batches:
        # Of the sum of the losses: only the direction counts, and this is far from 0.
        truth = backprop(network, batch.hiddens, terminal_gradient(network, batch.hiddens[-1], batch.y))
        for name, own in source_credits(network, sources, batch).items():
            totals[name] += cosine(own, truth).mean(-1).cpu()
    return {name: total / len(batches) for name, total in totals.items()}


def rho(network: ResidualNetwork, own: Mapping[str, Tensor], batch: Batch, seed: int) -> dict[str, Tensor]:
    """rho_l of each source, given its `source_credits`: (L,); NaN where one side does not vary.

    The directions of layer l, v (M, b, d), are drawn from N(0, I) on the CPU, from the stream ("rho", l), in single
    precision. They are divided by their length (`unit_directions`) in the network's dtype.
    """
    found = {name: torch.empty(network.num_blocks, dtype=torch.float64) for name in own}
    for layer in range(network.num_blocks):
        h = batch.hiddens[layer]
        drawn = torch.randn(RHO_DIRECTIONS, *h.shape, generator=generator(seed, "rho", layer))
        v = unit_directions(drawn.to(h))
        slopes = _slopes(network, h, batch.y, layer, v)
        for name, credit in own.items():
            along = (v * credit[layer]).sum(-1)
            found[name][layer] = _pearson(along.flatten(), slopes.flatten())
    return found


@torch.no_grad()
def _slopes(network: ResidualNetwork, h: Tensor, y: Tensor, layer: int, v: Tensor) -> Tensor:
    """Central differences of the per-sample loss at h_l (b, d) along v (M, b, d): (M, b)."""
    size = max(1, CHUNK_BYTES // (2 * h.numel() * h.element_size()))
    return torch.cat([central_differences(network, h, y, layer, some, eps=RHO_EPS) for some in torch.split(v, size)])


def defined(rho: Tensor) -> list[float | None]:
    """rho_l of one source as numbers, None where one side does not vary."""
    return [None if math.isnan(value) else value for value in rho.tolist()]


def mean(values: Sequence[float | None]) -> float | None:
    """The mean over layers; None if a layer has no value."""
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if len(there) == len(values) else None


def _pearson(a: Tensor, b: Tensor) -> Tensor:
    a, b = a - a.mean(), b - b.mean()
    correlation: Tensor = (a * b).sum() / (a.norm() * b.norm())
    return correlation


@torch.no_grad()
def nudge(network: ResidualNetwork, own: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
    """nudge_l of each source, given its `source_credits`, for each of NUDGE_ETAS: (L, 3)."""
    directions = unit(torch.stack(list(own.values())))  # (sources, L, b, d)
    etas = torch.tensor(NUDGE_ETAS).to(directions)
    found = torch.empty(len(own), network.num_blocks, len(NUDGE_ETAS), dtype=torch.float64)
    for layer in range(network.num_blocks):
        h = batch.hiddens[layer]
        before = cross_entropy(network.forward_from_layer(h, layer), batch.y)
        shifted = h - etas[:, None, None] * directions[:, layer].unsqueeze(1)
        after = cross_entropy(network.forward_from_layer(shifted, layer), batch.y)
        found[:, layer] = (after - before).mean(-1).cpu()
    return dict(zip(own, found, strict=True))


@torch.no_grad()
def prediction_error(network: ResidualNetwork, source: CreditSource, data: ImageData, size: int) -> Tensor:
    """mean ‖P_l - h_L‖² of a method's predicted states P_l over the whole test set, by layer: float64 (L,)."""
    total = torch.zeros(network.num_blocks, dtype=torch.float64, device=data.device)
    for batch in file_batches(network, data, size):
        predicted = source.predicted_states(network, batch.hiddens, batch.logits, batch.y)
        total += (predicted - batch.hiddens[-1]).square().sum((-2, -1))
    return (total / len(data.y_test)).cpu()
