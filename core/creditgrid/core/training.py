"""Training by backprop, as a generator: the caller takes what it wants of the network at each epoch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn import functional as F  # noqa: N812

from creditgrid.core.data import ImageData, normalise, training_batches
from creditgrid.core.network import ResidualMLP


@dataclass(frozen=True)
class Epoch:
    """A finished epoch; epoch 0 is the initialisation, which has no training loss.

    `train_loss` is the mean over the epoch's samples of the cross-entropy each had just before its batch's step.
    """

    epoch: int
    train_loss: float | None


def train_bp(
    network: ResidualMLP,
    data: ImageData,
    *,
    epochs: int,
    batch_size: int,
    lr: float,
    weight_decay: float,
    seed: int,
) -> Iterator[Epoch]:
    """Train `network` in place on the mean cross-entropy; yields epoch 0 before any step, then each finished epoch.

    AdamW (betas 0.9 and 0.999, eps 1e-8) on every parameter; the step size of epoch i = 1…epochs is
    lr (1 + cos(π (i - 1)/epochs))/2. The batches of epoch i are those of `training_batches` for (seed, i). A caller
    that wants the parameters of an epoch copies them before asking for the next one.
    """
    dtype = network.embed.weight.dtype
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=weight_decay, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs)
    yield Epoch(0, None)
    for epoch in range(1, epochs + 1):
        total = torch.zeros((), dtype=torch.float64, device=data.device)
        for x, y in training_batches(data, batch_size, seed, epoch):
            loss = F.cross_entropy(network(x.to(dtype)), y)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            # Summed on the device: reading the loss here would make the device wait for every step.
            total += loss.detach() * len(y)
        schedule.step()
        yield Epoch(epoch, total.item() / len(data.y_train))


@torch.no_grad()
def accuracy_and_loss(
    network: ResidualMLP, data: ImageData, split: Literal["train", "test"] = "test", batch: int = 1024
) -> tuple[float, float]:
    """Fraction of images classified right, and mean cross-entropy, over a whole split: unaugmented, in file order."""
    images, labels = (data.x_test, data.y_test) if split == "test" else (data.x_train, data.y_train)
    dtype = network.embed.weight.dtype
    correct, total = torch.zeros((2,), dtype=torch.float64, device=data.device)
    for x, y in zip(torch.split(images, batch), torch.split(labels, batch), strict=True):
        logits = network(normalise(x, data.mean, data.std).to(dtype))
        correct += (logits.argmax(1) == y).sum()
        total += F.cross_entropy(logits, y, reduction="sum")
    return correct.item() / len(labels), total.item() / len(labels)
