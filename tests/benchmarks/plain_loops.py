"""The scripts that CreditGrid replaces, as a researcher would write them: what the benchmarks compare against.

One cell, one direction, one layer, one image at a time; torchvision transforms on PIL images, a DataLoader with two
workers. Correct and readable, and nothing shared between cells.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from creditgrid.core.credit import credits
from creditgrid.core.data import ImageData
from creditgrid.core.estimators import EstimatorNet
from creditgrid.core.network import ResidualMLP


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


def flat(batches: DataLoader[Any]) -> Iterator[tuple[Tensor, Tensor]]:
    for x, y in batches:
        yield x.flatten(1), y


def train_epoch(network: ResidualMLP, optimizer: torch.optim.Optimizer, batches: DataLoader[Any]) -> float:
    total = 0.0
    for x, y in flat(batches):
        loss = F.cross_entropy(network(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item()
    return total


def fit_vec_epoch(
    estimator: EstimatorNet,
    optimizer: torch.optim.Optimizer,
    network: ResidualMLP,
    batches: DataLoader[Any],
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
            with torch.no_grad():
                ahead = F.cross_entropy(network.forward_from_layer(h + eps * v, layer), y, reduction="none")
                behind = F.cross_entropy(network.forward_from_layer(h - eps * v, layer), y, reduction="none")
            slope = (ahead - behind) / (2 * eps)
            loss = loss + ((field * v).sum(-1) - slope).square().mean() / directions
        _step(estimator, optimizer, loss)


def fit_scalar_cb_epoch(
    estimator: EstimatorNet,
    average: EstimatorNet,
    optimizer: torch.optim.Optimizer,
    network: ResidualMLP,
    batches: DataLoader[Any],
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


def _step(estimator: EstimatorNet, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(estimator.parameters(), 1.0)
    optimizer.step()


def line_search_cell(
    network: ResidualMLP,
    same: tuple[Tensor, Tensor],
    held: tuple[Tensor, Tensor],
    method: str,
    update_range: str,
    norm_mode: str,
    eta: float,
    feedback: Tensor,
    estimator: EstimatorNet | None,
) -> dict[str, float]:
    """One cell from scratch: copy, recompute hiddens and credit, step, evaluate."""
    copied = copy.deepcopy(network).requires_grad_(True)
    x, y = same
    with torch.no_grad():
        before_same = F.cross_entropy(copied(x), y).item()
        before_held = F.cross_entropy(copied(held[0]), held[1]).item()
        accuracy = (copied(x).argmax(-1) == y).float().mean().item()
        logits, hiddens = copied(x, return_hidden=True)
    credit = credits(method, copied, hiddens, logits, y, feedback=feedback, estimator=estimator)
    depth = copied.num_blocks
    first = {"last1": depth - 1, "last2": depth - 2, "all": 0}[update_range]
    sizes = []
    loss: Tensor = torch.zeros(())
    for layer in range(first, depth):
        a = credit[layer]
        size = a.square().mean(-1, keepdim=True).sqrt() + 1e-6
        sizes.append(size.mean().item())
        a = a / size if norm_mode == "norm" else a
        loss = loss + (copied.blocks[layer](hiddens[layer]) * a).sum(-1).mean()
    if update_range != "last1":
        loss = loss + F.cross_entropy(copied.head(hiddens[-1]), y)
    torch.optim.SGD(copied.parameters(), lr=eta).zero_grad()
    loss.backward()
    torch.optim.SGD(copied.parameters(), lr=eta).step()
    with torch.no_grad():
        after = copied(x)
        after_same = F.cross_entropy(after, y).item()
        after_held = F.cross_entropy(copied(held[0]), held[1]).item()
    return {
        "loss_before_same": before_same,
        "loss_after_same": after_same,
        "delta_loss_same": after_same - before_same,
        "delta_loss_held": after_held - before_held,
        "delta_acc_same": (after.argmax(-1) == y).float().mean().item() - accuracy,
        "credit_rms": sum(sizes) / len(sizes),
    }
