"""Training and fitting as a researcher's script does them today: what the benchmarks compare against.

One direction, one layer, one image at a time; torchvision transforms on PIL images, a DataLoader with two workers.
Correct and readable.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from creditgrid.core.science.data import ImageData
from creditgrid.core.science.estimators import EstimatorNet
from creditgrid.core.science.network import ResidualMLP

Batches: TypeAlias = Iterable[tuple[Tensor, Tensor]]


class PilImages(Dataset[tuple[Tensor, int]]):
    """Training images as a torchvision dataset hands them out."""

    def __init__(self, data: ImageData) -> None:
        size = data.x_train.shape[-1]
        self.images = [Image.fromarray(np.ascontiguousarray(x.permute(1, 2, 0).numpy())) for x in data.x_train]
        self.labels = data.y_train.tolist()
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(size, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(data.mean.tolist(), data.std.tolist()),
            ]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.images[index]), self.labels[index]


def loader(data: ImageData, batch_size: int) -> DataLoader[Any]:
    """Two workers that stay for all epochs."""
    return DataLoader(PilImages(data), batch_size, shuffle=True, num_workers=2, persistent_workers=True)


def flat(batches: Batches) -> Iterator[tuple[Tensor, Tensor]]:
    for x, y in batches:
        yield x.flatten(1), y


def train_epoch(network: ResidualMLP, optimizer: torch.optim.Optimizer, batches: Batches) -> float:
    total = 0.0
    for x, y in flat(batches):
        loss = F.cross_entropy(network(x), y)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        total += loss.item()
    return total


class AlignmentOptimizers:
    """An AdamW for each block, one for the embedding and one for the head, as each learns by itself."""

    def __init__(self, network: ResidualMLP, lr: float, weight_decay: float) -> None:
        def adamw(*parts: nn.Module) -> torch.optim.Optimizer:
            parameters = [parameter for part in parts for parameter in part.parameters()]
            return torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay)

        self.embed = adamw(network.embed)
        self.blocks = [adamw(block) for block in network.blocks]
        self.head = adamw(network.out_head, network.out_ln)


def train_dfa_epoch(network: ResidualMLP, optimizers: AlignmentOptimizers, feedback: Tensor, batches: Batches) -> float:
    total = 0.0
    for x, y in flat(batches):
        with torch.no_grad():
            logits, hiddens = network(x, return_hidden=True)
            error = logits.softmax(-1) - F.one_hot(y, logits.shape[-1])
        loss = F.cross_entropy(network.head(hiddens[-1]), y)
        total += loss.item()
        optimizers.head.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizers.head.step()
        for layer, block in enumerate(network.blocks):
            local = (block(hiddens[layer]) * _unit_rms(error @ feedback[layer].T)).sum(-1).mean()
            optimizers.blocks[layer].zero_grad()
            local.backward()
            nn.utils.clip_grad_norm_(block.parameters(), 1.0)
            optimizers.blocks[layer].step()
        local = (network.embed(x) * _unit_rms(error @ feedback[0].T)).sum(-1).mean()
        optimizers.embed.zero_grad()
        local.backward()
        optimizers.embed.step()
    return total


def _unit_rms(a: Tensor) -> Tensor:
    return a / (a.square().mean(-1, keepdim=True).sqrt() + 1e-6)


def fit_vec_epoch(
    estimator: EstimatorNet,
    optimizer: torch.optim.Optimizer,
    network: ResidualMLP,
    batches: Batches,
    directions: int = 4,
    eps: float = 1e-3,
) -> None:
    depth = network.num_blocks
    for x, y in flat(batches):
        with torch.no_grad():
            logits, hiddens = network(x, return_hidden=True)
            error = logits.softmax(-1) - F.one_hot(y, logits.shape[-1])
        last = hiddens[-1].clone().requires_grad_()
        (delta,) = torch.autograd.grad(F.cross_entropy(network.head(last), y, reduction="sum"), last)
        loss = (estimator(hiddens[-1], 1.0, error) - delta).square().sum(-1).mean()
        layer = int(torch.randint(depth, ()))
        h = hiddens[layer]
        field = estimator(h, layer / depth, error)
        for _ in range(directions):
            v = torch.randn_like(h)
            v /= v.norm(dim=-1, keepdim=True) + 1e-8
            with torch.no_grad():
                ahead = F.cross_entropy(network.forward_from_layer(h + eps * v, layer), y, reduction="none")
                behind = F.cross_entropy(network.forward_from_layer(h - eps * v, layer), y, reduction="none")
            slope = (ahead - behind) / (2 * eps)
            loss = loss + F.mse_loss((field * v).sum(-1), slope) / directions
        _step(estimator, optimizer, loss)


def fit_scalar_cb_epoch(
    estimator: EstimatorNet,
    average: EstimatorNet,
    optimizer: torch.optim.Optimizer,
    network: ResidualMLP,
    batches: Batches,
    temperature: float = 0.1,
    samples: int = 4,
    sigma: float = 0.05,
    ema: float = 0.995,
) -> None:
    depth = network.num_blocks
    for x, y in flat(batches):
        with torch.no_grad():
            logits, hiddens = network(x, return_hidden=True)
            error = logits.softmax(-1) - F.one_hot(y, logits.shape[-1])
            target = F.cross_entropy(logits, y, reduction="none")
        last = hiddens[-1].clone().requires_grad_()
        (delta,) = torch.autograd.grad(F.cross_entropy(network.head(last), y, reduction="sum"), last)
        value = estimator(last, 1.0, error)
        loss = (value - target).square().mean()
        for layer in range(depth):
            values = []
            with torch.no_grad():
                for _ in range(samples):
                    near = hiddens[layer + 1] + sigma * torch.randn_like(hiddens[layer + 1])
                    values.append(average(near, (layer + 1) / depth, error))
                soft = torch.logsumexp(-torch.stack(values) / temperature, 0) - math.log(samples)
            loss = loss + (estimator(hiddens[layer], layer / depth, error) + temperature * soft).square().mean() / depth
        (slope,) = torch.autograd.grad(value.sum(), last, create_graph=True)
        loss = loss + (slope - delta).square().sum(-1).mean()
        _step(estimator, optimizer, loss)
        with torch.no_grad():
            for slow, fast in zip(average.parameters(), estimator.parameters(), strict=True):
                slow.mul_(ema).add_(fast, alpha=1 - ema)


def fit_state_bridge_epoch(
    estimator: EstimatorNet, optimizer: torch.optim.Optimizer, network: ResidualMLP, batches: Batches
) -> None:
    depth = network.num_blocks
    for x, y in flat(batches):
        with torch.no_grad():
            logits, hiddens = network(x, return_hidden=True)
            error = logits.softmax(-1) - F.one_hot(y, logits.shape[-1])
            scale = hiddens[-1].norm(dim=-1, keepdim=True).clamp_min(1)
        loss: Tensor = torch.zeros(())
        for layer in range(depth):
            distance = (estimator(hiddens[layer], layer / depth, error) - hiddens[-1]) / scale
            loss = loss + distance.square().sum(-1).mean() / depth
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def _step(estimator: EstimatorNet, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(estimator.parameters(), 1.0)
    optimizer.step()
