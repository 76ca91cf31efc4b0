"""Training by backprop or direct feedback alignment, as a generator of epochs: Protocols, section 3 (Training)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from creditgrid.core.science.choices import TrainRule
from creditgrid.core.science.credit import output_error
from creditgrid.core.science.data import ImageData, normalise, training_batches
from creditgrid.core.science.moments import load_moments, moments_fit, moments_of
from creditgrid.core.science.network import ResidualNetwork
from creditgrid.core.science.per_sample import normalise_credit
from creditgrid.core.science.random_streams import generator


@dataclass(frozen=True)
class Epoch:
    """A finished epoch; epoch 0 is the initialisation, which has no training loss.

    `train_loss` is the mean over the epoch's samples of the cross-entropy, each taken just before its batch's step.
    `state` copies all that a run needs to resume from here: the parameters, AdamW's moments and the epoch. `step_size`
    is AdamW's in this epoch, and `seconds` what the epoch took; both are None where no epoch was trained.
    """

    epoch: int
    train_loss: float | None
    state: Callable[[], dict[str, Tensor]]
    step_size: float | None = None
    seconds: float | None = None


def train(
    network: ResidualNetwork,
    data: ImageData,
    *,
    rule: TrainRule,
    epochs: int,
    batch_size: int,
    lr: float,
    weight_decay: float,
    seed: int,
    feedback: Tensor | None = None,
    random_targets: bool = False,
    resume: Mapping[str, Tensor] | None = None,
) -> Iterator[Epoch]:
    """Train `network` in place; yields epoch 0 before any step, then each finished epoch.

    AdamW (betas 0.9 and 0.999, eps 1e-8); the step size of epoch i = 1…epochs is lr (1 + cos(π (i - 1)/epochs))/2.
    AdamW acts on each element separately, so one for all parameters equals one for each block. The gradients are those
    of `backprop`, or for dfa of `feedback_alignment` by `feedback` B_l (L, d, C). The batches of epoch i are those of
    `training_batches` for (seed, i); with `random_targets`, uniform classes from the stream ("train/targets", i)
    replace their labels. A caller that wants the parameters of an epoch copies them before it requests the next one.
    With `resume`, an earlier epoch's `state`, that epoch is yielded first, and training continues bit for bit as if it
    had not stopped.

    Raises:
        ValueError: for dfa without its feedback.
    """
    if rule == "dfa" and feedback is None:
        raise ValueError("training by dfa needs its feedback matrices")
    dtype = network.dtype
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=weight_decay, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs)
    last = 0
    if resume is not None:
        last = int(resume["epoch"])
        _load_state(network, optimizer, schedule, resume)

    def epoch_at(number: int, train_loss: float | None, *measured: float) -> Epoch:
        return Epoch(number, train_loss, lambda: _state(network, optimizer, number, train_loss), *measured)

    yield epoch_at(last, None if resume is None or not last else resume["train_loss"].item())
    for epoch in range(last + 1, epochs + 1):
        started, step_size = time.perf_counter(), float(optimizer.param_groups[0]["lr"])
        total = torch.zeros((), dtype=torch.float64, device=data.device)
        targets = generator(seed, "train/targets", epoch)
        for x, labels in training_batches(data, batch_size, seed, epoch):
            y = labels
            if random_targets:
                y = torch.randint(data.num_classes, (len(labels),), generator=targets).to(data.device)
            optimizer.zero_grad()
            if feedback is None or rule == "bp":
                loss = backprop(network, x.to(dtype), y)
            else:
                loss = feedback_alignment(network, x.to(dtype), y, feedback)
            optimizer.step()
            # Summed on the device: reading the loss here would make the device wait for every step.
            total += loss * len(y)
        schedule.step()
        train_loss = total.item() / len(data.y_train)  # waits for the device
        yield epoch_at(epoch, train_loss, step_size, time.perf_counter() - started)


def backprop(network: ResidualNetwork, x: Tensor, y: Tensor) -> Tensor:
    """Set each parameter's gradient to that of the mean cross-entropy, which is returned detached."""
    loss = F.cross_entropy(network(x), y)
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach()


def feedback_alignment(network: ResidualNetwork, x: Tensor, y: Tensor, feedback: Tensor) -> Tensor:
    """Set each parameter's gradient to that of its local loss, by direct feedback alignment; returns the mean CE.

    With e = softmax(logits) - onehot(y), a_l = e B_lᵀ and â = a/RMS(a) per sample: the head steps on its cross-entropy
    at h_L; block l on mean_b ⟨F_l(h_l), â_l⟩, its gradient's norm clipped to 1; the embedding on mean_b ⟨h_0, â_0⟩.
    Every h is detached: no loss reaches below its own part, so one forward pass serves all.
    """
    embedded = network.embedding(x)
    h, branches = embedded.detach(), []
    for layer in range(network.num_blocks):
        branch = network.branch(layer, h)
        branches.append(branch)
        h = h + branch.detach() if network.residual_add else branch.detach()
    logits = network.head(h)
    loss = F.cross_entropy(logits, y)
    error = output_error(logits, y)
    credits = [normalise_credit(error @ matrix.T) / len(y) for matrix in feedback]
    torch.autograd.backward([loss, embedded, *branches], [None, credits[0], *credits])
    for block in network.blocks:
        nn.utils.clip_grad_norm_(block.parameters(), 1.0)
    return loss.detach()


def resumable(network: ResidualNetwork, state: Mapping[str, Tensor]) -> bool:
    """Whether `train` of this version can resume from `state`."""
    parameters = dict(network.named_parameters())
    wanted = {"epoch", "steps", "lr", "train_loss", *(f"network.{name}" for name in parameters)}
    if not wanted <= state.keys():
        return False
    fits = all(state[f"network.{name}"].shape == parameter.shape for name, parameter in parameters.items())
    return fits and (not state["epoch"] or moments_fit(network, state))


def _state(
    network: ResidualNetwork, optimizer: torch.optim.AdamW, epoch: int, train_loss: float | None
) -> dict[str, Tensor]:
    """Parameters as `network.{name}`, AdamW's moments as `{moment}.{name}`, and how far the run is."""
    state = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    state |= moments_of(network, optimizer)
    return {name: tensor.detach().clone() for name, tensor in state.items()} | {
        "epoch": torch.tensor(epoch),
        "lr": torch.tensor(optimizer.param_groups[0]["lr"], dtype=torch.float64),
        "train_loss": torch.tensor(math.nan if train_loss is None else train_loss, dtype=torch.float64),
    }


def _load_state(
    network: ResidualNetwork,
    optimizer: torch.optim.AdamW,
    schedule: torch.optim.lr_scheduler.CosineAnnealingLR,
    state: Mapping[str, Tensor],
) -> None:
    epoch = int(state["epoch"])
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(state[f"network.{name}"])
    if epoch:
        load_moments(network, optimizer, state)
    # The schedule computes each step size from the one before: the saved one keeps the run bit for bit.
    schedule.last_epoch = epoch
    optimizer.param_groups[0]["lr"] = state["lr"].item()


@torch.no_grad()
def accuracy_and_loss(
    network: ResidualNetwork, data: ImageData, split: Literal["train", "test"] = "test", batch: int = 1024
) -> tuple[float, float]:
    """Fraction of images classified right, and mean cross-entropy, over a whole split: unaugmented, in file order."""
    images, labels = (data.x_test, data.y_test) if split == "test" else (data.x_train, data.y_train)
    dtype = network.dtype
    correct, total = torch.zeros((2,), dtype=torch.float64, device=data.device)
    for x, y in zip(torch.split(images, batch), torch.split(labels, batch), strict=True):
        logits = network(normalise(x, data.mean, data.std).to(dtype))
        correct += (logits.argmax(1) == y).sum()
        total += F.cross_entropy(logits, y, reduction="sum")
    return correct.item() / len(labels), total.item() / len(labels)
