"""The experiments as a researcher's script measures them today: what the benchmarks compare against.

One cell, step size, direction, layer and batch at a time: a deep copy of the network for every step that is tried,
autograd of the local losses as they are written, and everything computed anew for each cell. What a careful script does
not do twice is not done twice either: batches are ready-made tensors, the loss before a search is computed once, and
credits are of the layers that step alone. Losses whose small differences are asked for (rho, nudge) are in double
precision, as ours are: single precision's rounding would be all that rho shows of a weak credit.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from creditgrid.core.science.estimators import EstimatorNet
from creditgrid.core.science.network import ResidualMLP
from creditgrid.core.science.random_streams import generator

Batch: TypeAlias = tuple[Tensor, Tensor]


class Source(NamedTuple):
    """Where a credit comes from."""

    method: str
    feedback: Sequence[Tensor] = ()
    estimator: EstimatorNet | Tensor | None = None  # a linear one is its weights (n + C, n)
    s_source: str = "e_T"


def loss_of(network: ResidualMLP, batch: Batch) -> float:
    with torch.no_grad():
        return F.cross_entropy(network(batch[0]), batch[1]).item()


def true_gradient(network: ResidualMLP, hiddens: Sequence[Tensor], y: Tensor, layers: range) -> list[Tensor]:
    along = [hiddens[layers.start].detach().requires_grad_()]
    for layer in range(layers.start, network.num_blocks):
        along.append(along[-1] + network.blocks[layer](along[-1]))
    return list(torch.autograd.grad(F.cross_entropy(network.head(along[-1]), y), along[: len(layers)]))


def credit_of(
    source: Source, network: ResidualMLP, hiddens: Sequence[Tensor], y: Tensor, layers: range
) -> list[Tensor]:
    """a_l of each of ``layers``, a range up to the last."""
    if source.method == "oracle_bp":
        return true_gradient(network, hiddens, y, layers)
    with torch.no_grad():
        logits = network.head(hiddens[-1])
        s = logits.softmax(-1) - F.one_hot(y, logits.shape[-1])
    if source.method == "dfa":
        return [s @ source.feedback[layer].T for layer in layers]
    if source.method == "linear":
        return [torch.cat((hiddens[layer], s), -1) @ source.estimator for layer in layers]
    assert isinstance(source.estimator, EstimatorNet)
    if source.s_source == "delta_L":
        last = hiddens[-1].detach().clone().requires_grad_()
        (s,) = torch.autograd.grad(F.cross_entropy(network.head(last), y, reduction="sum"), last)
    found = []
    for layer in layers:
        h, t = hiddens[layer].detach().clone().requires_grad_(), layer / network.num_blocks
        if source.method == "vec":
            found.append(source.estimator(h, t, s).detach())
            continue
        out = source.estimator(h, t, s)
        if source.method == "state_bridge":
            out = F.cross_entropy(network.head(out), y, reduction="sum")
        found.append(torch.autograd.grad(out.sum(), h)[0])
    return found


def rms(a: Tensor) -> Tensor:
    return a.square().mean(-1, keepdim=True).sqrt() + 1e-6


def local_loss(
    network: ResidualMLP,
    hiddens: Sequence[Tensor],
    credits: Sequence[Tensor],
    y: Tensor,
    layers: range,
    *,
    norm_mode: str = "raw",
    update_head: bool = True,
    rule: str = "inner_product",
    kappa: float | None = None,
) -> Tensor:
    """The sum of the local losses of ``layers``, whose credits these are: each parameter is in one of them alone."""
    loss: Tensor = torch.zeros(())
    for layer, a in zip(layers, credits, strict=True):
        towards = a / rms(a) if norm_mode == "norm" or rule == "target_shift" else a
        branch = network.blocks[layer](hiddens[layer])
        if rule == "inner_product":
            loss = loss + (branch * towards).sum(-1).mean()
        elif rule == "target_shift":
            assert kappa is not None
            target = hiddens[layer + 1] - kappa * towards
            loss = loss + (hiddens[layer] + branch - target).square().sum(-1).mean() / 2
        else:
            loss = loss + F.cosine_similarity(branch, towards, dim=-1, eps=1e-12).mean()
    return loss + F.cross_entropy(network.head(hiddens[-1]), y) if update_head else loss


def local_step(
    network: ResidualMLP,
    batch: Batch,
    source: Source,
    layers: range,
    eta: float,
    clamp: float | None = None,
    **options: Any,
) -> None:
    x, y = batch
    with torch.no_grad():
        _, hiddens = network(x, return_hidden=True)
    credits = credit_of(source, network, hiddens, y, layers)
    optimizer = torch.optim.SGD(network.parameters(), lr=eta)
    optimizer.zero_grad()
    local_loss(network, hiddens, credits, y, layers, **options).backward()  # type: ignore[no-untyped-call]
    if clamp is not None:
        nn.utils.clip_grad_value_(network.parameters(), clamp)
    optimizer.step()


def blocks_of(network: ResidualMLP, update_range: str) -> range:
    depth = network.num_blocks
    return range({"last1": depth - 1, "last2": depth - 2, "all": 0}[update_range], depth)


def gamma(network: ResidualMLP, source: Source, batches: Sequence[Batch]) -> list[float]:
    layers = range(network.num_blocks)
    totals = [0.0] * len(layers)
    for x, y in batches:
        with torch.no_grad():
            _, hiddens = network(x, return_hidden=True)
        own, truth = (
            credit_of(source, network, hiddens, y, layers),
            true_gradient(network, hiddens, y, layers),
        )
        for layer in layers:
            totals[layer] += F.cosine_similarity(own[layer], truth[layer], dim=-1, eps=1e-12).mean().item()
    return [total / len(batches) for total in totals]


def rho(network: ResidualMLP, source: Source, batch: Batch, seed: int, eps: float = 1e-3) -> list[float]:
    x, y = batch
    layers = range(network.num_blocks)
    with torch.no_grad():
        _, hiddens = network(x, return_hidden=True)
    credits = credit_of(source, network, hiddens, y, layers)
    precise = copy.deepcopy(network).double()
    found = []
    for layer in layers:
        h, draws = hiddens[layer].double(), generator(seed, "rho", layer)
        predicted, measured = [], []
        with torch.no_grad():
            for _ in range(32):
                v = torch.randn(h.shape, generator=draws).double()
                v = v / (v.norm(dim=-1, keepdim=True) + 1e-8)
                ahead = F.cross_entropy(precise.forward_from_layer(h + eps * v, layer), y, reduction="none")
                behind = F.cross_entropy(precise.forward_from_layer(h - eps * v, layer), y, reduction="none")
                predicted.append((credits[layer] * v).sum(-1))
                measured.append((ahead - behind) / (2 * eps))
        pairs = torch.stack((torch.cat(predicted), torch.cat(measured)))
        found.append(torch.corrcoef(pairs)[0, 1].item())
    return found


def nudge(network: ResidualMLP, source: Source, batch: Batch, eta: float) -> list[float]:
    x, y = batch
    layers = range(network.num_blocks)
    with torch.no_grad():
        _, hiddens = network(x, return_hidden=True)
    precise = copy.deepcopy(network).double()
    found = []
    for layer, a in enumerate(credit_of(source, network, hiddens, y, layers)):
        h = hiddens[layer].double()
        with torch.no_grad():
            before = F.cross_entropy(precise.forward_from_layer(h, layer), y)
            after = F.cross_entropy(precise.forward_from_layer(h - eta * F.normalize(a, dim=-1), layer), y)
        found.append((after - before).item())
    return found


def prediction_error(network: ResidualMLP, bridge: EstimatorNet, batches: Sequence[Batch]) -> list[float]:
    depth = network.num_blocks
    totals, images = [0.0] * depth, 0
    for x, y in batches:
        with torch.no_grad():
            logits, hiddens = network(x, return_hidden=True)
            error = logits.softmax(-1) - F.one_hot(y, logits.shape[-1])
            for layer in range(depth):
                missed = bridge(hiddens[layer], layer / depth, error) - hiddens[-1]
                totals[layer] += missed.square().sum().item()
        images += len(y)
    return [total / images for total in totals]
