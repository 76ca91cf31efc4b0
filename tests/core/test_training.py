from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from creditgrid.core.data import ImageData, training_batches
from creditgrid.core.network import ResidualMLP
from creditgrid.core.streams import generator
from creditgrid.core.training import Epoch, accuracy_and_loss, train_bp


def _network(data: ImageData, seed: int = 0) -> ResidualMLP:
    return ResidualMLP(data.input_dim, 16, data.num_classes, 2, w2_std=0.1, generator=generator(seed, "init"))


def _train(network: ResidualMLP, data: ImageData, epochs: int, seed: int = 0, lr: float = 3e-3) -> Iterator[Epoch]:
    return train_bp(network, data, epochs=epochs, batch_size=64, lr=lr, weight_decay=0.1, seed=seed)


def _slow_loss(p: dict[str, Tensor], x: Tensor, label: int) -> Tensor:
    """Cross-entropy of one sample, from the formulas, given the parameters by name."""

    def layer_norm(name: str, h: Tensor) -> Tensor:
        centred = h - h.mean()
        return centred / (centred.square().mean() + 1e-5).sqrt() * p[f"{name}.weight"] + p[f"{name}.bias"]

    h = p["embed.weight"] @ x + p["embed.bias"]
    for layer in range(2):
        block = f"blocks.{layer}"
        inner = p[f"{block}.w1.weight"] @ layer_norm(f"{block}.ln", h) + p[f"{block}.w1.bias"]
        inner = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
        h = h + p[f"{block}.w2.weight"] @ inner + p[f"{block}.w2.bias"]
    logits = p["out_head.weight"] @ layer_norm("out_ln", h) + p["out_head.bias"]
    return -(logits[label] - logits.exp().sum().log())


def _slow_training(network: ResidualMLP, data: ImageData, epochs: int) -> list[tuple[float, dict[str, Tensor]]]:
    """AdamW with a cosine schedule written out, one sample's gradient at a time: (loss, parameters) of each epoch."""
    lr, weight_decay, beta1, beta2 = 3e-3, 0.1, 0.9, 0.999
    p = {name: tensor.clone().requires_grad_() for name, tensor in network.state_dict().items()}
    first = {name: torch.zeros_like(tensor) for name, tensor in p.items()}
    second = {name: torch.zeros_like(tensor) for name, tensor in p.items()}
    step, history = 0, []
    for epoch in range(1, epochs + 1):
        eta = lr * (1 + math.cos(math.pi * (epoch - 1) / epochs)) / 2
        losses = []
        for x, y in training_batches(data, 64, 0, epoch):
            step += 1
            gradient = {name: torch.zeros_like(tensor) for name, tensor in p.items()}
            for sample, label in zip(x.double(), y.tolist(), strict=True):
                loss = _slow_loss(p, sample, label)
                losses.append(loss.item())
                for name, part in zip(p, torch.autograd.grad(loss, list(p.values())), strict=True):
                    gradient[name] += part / len(y)
            with torch.no_grad():
                for name, g in gradient.items():
                    first[name] = beta1 * first[name] + (1 - beta1) * g
                    second[name] = beta2 * second[name] + (1 - beta2) * g * g
                    m, v = first[name] / (1 - beta1**step), second[name] / (1 - beta2**step)
                    p[name] -= eta * weight_decay * p[name] + eta * m / (v.sqrt() + 1e-8)
        history.append((sum(losses) / len(losses), {name: tensor.detach().clone() for name, tensor in p.items()}))
    return history


def test_training_against_adamw_and_cosine_written_out(tiny_data: ImageData) -> None:
    network = _network(tiny_data).double()
    slow = _slow_training(network, tiny_data, epochs=3)
    run = _train(network, tiny_data, epochs=3)
    assert next(run) == Epoch(0, None)
    for number, (loss, parameters) in enumerate(slow, start=1):
        state = next(run)
        assert state.epoch == number
        assert state.train_loss == pytest.approx(loss, rel=1e-10)
        for name, tensor in network.state_dict().items():
            torch.testing.assert_close(tensor, parameters[name], rtol=1e-7, atol=1e-9)
    assert next(run, None) is None


def test_float32_training_stays_close_to_float64(tiny_data: ImageData) -> None:
    single, double = _network(tiny_data), _network(tiny_data).double()
    for low, high in zip(_train(single, tiny_data, 2), _train(double, tiny_data, 2), strict=True):
        assert low.epoch == high.epoch
        if low.train_loss is not None:
            assert low.train_loss == pytest.approx(high.train_loss, rel=1e-5)


def test_nothing_moves_before_the_first_epoch_is_asked_for(tiny_data: ImageData) -> None:
    network = _network(tiny_data)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    run = _train(network, tiny_data, epochs=1)
    next(run)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    next(run)
    assert not any(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_no_epochs_leave_the_initialisation(tiny_data: ImageData) -> None:
    assert list(_train(_network(tiny_data), tiny_data, epochs=0)) == [Epoch(0, None)]


def test_training_repeats_bit_for_bit_whatever_the_global_state(tiny_data: ImageData) -> None:
    torch.manual_seed(0)
    first = _network(tiny_data)
    losses = [state.train_loss for state in _train(first, tiny_data, 2)]
    torch.manual_seed(1)
    again = _network(tiny_data)
    assert [state.train_loss for state in _train(again, tiny_data, 2)] == losses
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
    assert [state.train_loss for state in _train(_network(tiny_data), tiny_data, 2, seed=1)] != losses


def test_training_learns(tiny_data: ImageData) -> None:
    network = _network(tiny_data)
    accuracy, loss = accuracy_and_loss(network, tiny_data)
    for _ in _train(network, tiny_data, epochs=20):
        pass
    learnt, smaller = accuracy_and_loss(network, tiny_data)
    assert accuracy < 0.5
    assert learnt > 0.7
    assert smaller < loss / 2


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("batch", [1024, 7])
def test_accuracy_and_loss_against_a_loop(tiny_data: ImageData, split: str, batch: int) -> None:
    network = _network(tiny_data).double()
    parameters = network.state_dict()
    images, labels = (tiny_data.x_test, tiny_data.y_test) if split == "test" else (tiny_data.x_train, tiny_data.y_train)
    mean, std = tiny_data.mean.double()[:, None, None], tiny_data.std.double()[:, None, None]
    losses, right = [], 0
    for image, label in zip(images, labels.tolist(), strict=True):
        x = ((image.double() / 255 - mean) / std).flatten()
        every = [_slow_loss(parameters, x, klass).item() for klass in range(5)]
        losses.append(every[label])
        right += every[label] == min(every)
    accuracy, loss = accuracy_and_loss(network, tiny_data, split, batch)  # type: ignore[arg-type]
    assert accuracy == right / len(labels)
    assert loss == pytest.approx(sum(losses) / len(losses), rel=1e-6)


def test_a_diverged_network_has_a_loss_that_is_not_finite(tiny_data: ImageData) -> None:
    network = _network(tiny_data)
    with torch.no_grad():
        network.out_head.weight.fill_(math.nan)
    assert math.isnan(accuracy_and_loss(network, tiny_data)[1])
    one_batch = replace(tiny_data, x_train=tiny_data.x_train[:64], y_train=tiny_data.y_train[:64])
    *_, last = _train(network, one_batch, epochs=1)
    assert last.train_loss is not None
    assert math.isnan(last.train_loss)
