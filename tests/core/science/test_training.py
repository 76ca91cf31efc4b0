from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import slow_reference as slow
import torch
from torch import Tensor

from creditgrid.core.science import training as module
from creditgrid.core.science.credit import feedback_matrices
from creditgrid.core.science.data import ImageData, training_batches
from creditgrid.core.science.network import ResidualMLP
from creditgrid.core.science.random_streams import generator
from creditgrid.core.science.training import Epoch, accuracy_and_loss, train


def _network(data: ImageData, seed: int = 0) -> ResidualMLP:
    return ResidualMLP(data.input_dim, 16, data.num_classes, 2, w2_std=0.1, generator=generator(seed, "init"))


def _train(network: ResidualMLP, data: ImageData, epochs: int, seed: int = 0, lr: float = 3e-3) -> Iterator[Epoch]:
    return train(network, data, rule="bp", epochs=epochs, batch_size=64, lr=lr, weight_decay=0.1, seed=seed)


def _told(state: Epoch) -> tuple[int, float | None]:
    return state.epoch, state.train_loss


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
    expected = _slow_training(network, tiny_data, epochs=3)
    run = _train(network, tiny_data, epochs=3)
    assert _told(next(run)) == (0, None)
    for number, (loss, parameters) in enumerate(expected, start=1):
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
    assert [_told(state) for state in _train(_network(tiny_data), tiny_data, epochs=0)] == [(0, None)]


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


# -- direct feedback alignment -------------------------------------------------------------------------------------

EPOCHS = 3
FEEDBACK = feedback_matrices(5, 2, 16, 5)


def _few(data: ImageData, images: int = 50) -> ImageData:
    return replace(data, x_train=data.x_train[:images], y_train=data.y_train[:images])


def _align(network: ResidualMLP, data: ImageData, **changes: Any) -> Iterator[Epoch]:
    options: dict[str, Any] = {"rule": "dfa", "epochs": EPOCHS, "batch_size": 20, "lr": 3e-3, "weight_decay": 0.1}
    feedback = FEEDBACK.to(network.embed.weight)
    return train(network, data, **{**options, "seed": 0, "feedback": feedback, **changes})


def _parts(p: slow.Parameters) -> dict[str, list[str]]:
    """Names of the parameters of embed, of each block, and of the head with its norm."""
    names: dict[str, list[str]] = {}
    for name in p:
        part = ".".join(name.split(".")[:2]) if name.startswith("blocks.") else name.split(".")[0]
        names.setdefault("head" if part.startswith("out_") else part, []).append(name)
    return names


def _slow_alignment(
    network: ResidualMLP, data: ImageData, labels_of: Any = None
) -> tuple[list[tuple[float, slow.Parameters]], dict[str, list[float]]]:
    """One AdamW and one schedule for each part, one sample at a time; history, and the norms before clipping."""
    p = slow.parameters_of(network)
    reference = slow.SlowNetwork(p, network.residual_add)
    optimizers = {part: slow.AdamW(p, names, 3e-3, 0.1, EPOCHS) for part, names in _parts(p).items()}
    assert list(optimizers) == ["embed", "blocks.0", "blocks.1", "head"]
    norms: dict[str, list[float]] = {part: [] for part in optimizers}
    history = []
    for epoch in range(1, EPOCHS + 1):
        losses = []
        for x, y in training_batches(data, 20, 0, epoch):
            xs, labels = x.double(), y.tolist() if labels_of is None else labels_of(epoch, len(y))
            errors = [reference.error(sample, label) for sample, label in zip(xs, labels, strict=True)]
            credits = torch.stack([torch.stack([matrix.double() @ error for error in errors]) for matrix in FEEDBACK])
            losses += [
                slow.cross_entropy(reference.logits(sample), label).item()
                for sample, label in zip(xs, labels, strict=True)
            ]
            # All gradients are of the forward pass before any step.
            found = slow.local_gradients(reference, xs, labels, credits, range(2), update_head=True, normalise=True)
            along = [
                torch.dot(slow.linear(p, "embed", sample), a / slow.rms(a))
                for sample, a in zip(xs, credits[0], strict=True)
            ]
            names = _parts(p)["embed"]
            of_embed = torch.autograd.grad(torch.stack(along).sum() / len(along), [p[name] for name in names])
            found |= dict(zip(names, of_embed, strict=True))
            for part, optimizer in optimizers.items():
                own = {name: found[name] for name in optimizer.names}
                norms[part].append(slow.norm_of(own))
                optimizer.step(slow.clipped(own) if part.startswith("blocks.") else own)
        for optimizer in optimizers.values():
            optimizer.epoch += 1
        history.append((sum(losses) / len(losses), {name: tensor.detach().clone() for name, tensor in p.items()}))
    return history, norms


def _assert_as_the_slow_one(run: Iterator[Epoch], network: ResidualMLP, history: Any) -> None:
    assert _told(next(run)) == (0, None)
    for number, (loss, parameters) in enumerate(history, start=1):
        state = next(run)
        assert state.epoch == number
        assert state.train_loss == pytest.approx(loss, rel=1e-9)
        for name, tensor in network.state_dict().items():
            torch.testing.assert_close(tensor, parameters[name], rtol=1e-6, atol=1e-8)
    assert next(run, None) is None


@pytest.mark.parametrize("residual_add", [True, False])
def test_alignment_against_an_optimizer_for_each_part_written_out(tiny_data: ImageData, residual_add: bool) -> None:
    data = _few(tiny_data)
    network = ResidualMLP(
        data.input_dim, 16, data.num_classes, 2, residual_add, 0.1, generator=generator(0, "init")
    ).double()
    history, norms = _slow_alignment(network, data)
    # Some block is clipped; embed is longer than 1 too, and clipping it would show.
    assert max(norms["blocks.0"] + norms["blocks.1"]) > 1
    assert max(norms["embed"]) > 1
    _assert_as_the_slow_one(_align(network, data), network, history)


def _backwards(network: ResidualMLP, data: ImageData) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The gradients that one batch sets, and the same found slowly without clipping."""
    x, y = next(training_batches(data, 12, 0, 1))
    network.zero_grad()
    module.feedback_alignment(network, x.double(), y, FEEDBACK.double())
    reference = slow.SlowNetwork(slow.parameters_of(network), network.residual_add)
    credits = torch.stack(
        [
            torch.stack([matrix.double() @ reference.error(s, int(label)) for s, label in zip(x, y, strict=True)])
            for matrix in FEEDBACK
        ]
    )
    raw = slow.local_gradients(reference, x.double(), y.tolist(), credits, range(2), update_head=True, normalise=True)
    found = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    return found, raw


@pytest.mark.parametrize("wide", [(True, False), (False, True), (True, True), (False, False)])
def test_each_block_s_gradient_is_clipped_by_itself_and_the_head_s_is_not(
    tiny_data: ImageData, wide: tuple[bool, bool]
) -> None:
    network = _network(tiny_data).double()
    with torch.no_grad():  # a block's gradient grows with its inner weights
        for block, long in zip(network.blocks, wide, strict=True):
            block.w1.weight.mul_(30 if long else 0.01)  # type: ignore[operator, union-attr]
            block.w1.bias.mul_(30 if long else 0.01)  # type: ignore[operator, union-attr]
            block.w2.weight.mul_(1 if long else 0.01)  # type: ignore[operator, union-attr]
        network.out_ln.weight.mul_(10)  # and the head's with its norm's
    found, raw = _backwards(network, tiny_data)
    for index, long in enumerate(wide):
        own = {name: g for name, g in raw.items() if name.startswith(f"blocks.{index}.")}
        assert len(own) == 6
        if long:
            assert slow.norm_of(own) > 1.5
            assert slow.norm_of({name: found[name] for name in own}) == pytest.approx(1, rel=1e-5)
        for name, g in slow.clipped(own).items():
            torch.testing.assert_close(found[name], g, rtol=1e-9, atol=1e-12)
    of_head = {name: g for name, g in raw.items() if name.startswith("out_")}
    assert len(of_head) == 4
    assert slow.norm_of(of_head) > 1.5
    for name, g in of_head.items():
        torch.testing.assert_close(found[name], g, rtol=1e-9, atol=1e-12)


def test_random_targets_are_uniform_labels_of_their_own_stream(tiny_data: ImageData) -> None:
    data = _few(tiny_data)
    targets: dict[int, list[int]] = {}
    for epoch in range(1, EPOCHS + 1):
        draws = generator(0, "train/targets", epoch)
        targets[epoch] = [int(i) for n in (20, 20, 10) for i in torch.randint(5, (n,), generator=draws)]
    left = {epoch: list(drawn) for epoch, drawn in targets.items()}

    def labels_of(epoch: int, count: int) -> list[int]:
        taken, left[epoch] = left[epoch][:count], left[epoch][count:]
        return taken

    network = _network(data).double()
    history, _ = _slow_alignment(network, data, labels_of)
    _assert_as_the_slow_one(_align(network, data, random_targets=True), network, history)
    assert len({tuple(drawn) for drawn in targets.values()}) == EPOCHS
    assert {label for drawn in targets.values() for label in drawn} == set(range(5))


def test_alignment_learns_and_random_targets_teach_nothing(tiny_data: ImageData) -> None:
    accuracies = []
    for random_targets in (False, True):
        network = _network(tiny_data)
        for _ in _align(network, tiny_data, epochs=15, random_targets=random_targets):
            pass
        accuracies.append(accuracy_and_loss(network, tiny_data)[0])
    assert accuracies[0] > 0.7
    assert accuracies[1] < 0.5


def test_dfa_without_its_feedback_is_refused_before_anything_is_done(tiny_data: ImageData) -> None:
    with pytest.raises(ValueError, match="feedback"):
        next(_align(_network(tiny_data), tiny_data, feedback=None))


# -- resuming a run --------------------------------------------------------------------------------------------------


def _kept(state: dict[str, Tensor]) -> dict[str, np.ndarray[Any, Any]]:
    return {name: tensor.numpy().copy() for name, tensor in state.items()}


@pytest.mark.parametrize(("rule", "random_targets"), [("bp", False), ("dfa", False), ("dfa", True)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_run_resumes_from_any_epoch_bit_for_bit(
    tiny_data: ImageData, rule: Any, random_targets: bool, dtype: torch.dtype
) -> None:
    data, epochs = _few(tiny_data, 90), 5
    options: dict[str, Any] = {"rule": rule, "random_targets": random_targets, "epochs": epochs}
    kept, losses = [], []
    for at in _align(_network(data).to(dtype), data, **options):
        assert at.epoch == len(kept)
        kept.append(_kept(at.state()))
        losses.append(at.train_loss)
    assert len({state["network.embed.weight"].tobytes() for state in kept}) == epochs + 1
    for start in range(epochs + 1):
        other = _network(data, seed=9).to(dtype)  # nothing of it may be left
        resume = {name: torch.from_numpy(array.copy()) for name, array in kept[start].items()}
        run = list(_align(other, data, **options, resume=resume))
        assert [at.epoch for at in run] == list(range(start, epochs + 1))
        assert [at.train_loss for at in run[1:]] == losses[start + 1 :]
        last = _kept(run[-1].state())
        assert last.keys() == kept[-1].keys()
        for name, array in last.items():
            assert array.dtype == kept[-1][name].dtype, name
            assert array.tobytes() == kept[-1][name].tobytes(), name


def test_a_state_is_a_copy_and_holds_everything_that_moves(tiny_data: ImageData) -> None:
    network = _network(tiny_data)
    run = _train(network, tiny_data, 2)
    assert set(next(run).state()) == {f"network.{name}" for name in network.state_dict()} | {
        "epoch",
        "steps",
        "lr",
        "train_loss",
    }
    state = next(run).state()
    parts = {f"{part}.{name}" for part in ("network", "exp_avg", "exp_avg_sq") for name in network.state_dict()}
    assert set(state) == parts | {"epoch", "steps", "lr", "train_loss"}
    assert (int(state["epoch"]), int(state["steps"])) == (1, 4)  # 200 images in batches of 64
    before = {name: tensor.clone() for name, tensor in state.items()}
    next(run)
    assert all(torch.equal(tensor, before[name]) for name, tensor in state.items())
