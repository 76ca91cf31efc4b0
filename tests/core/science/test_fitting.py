from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, TypeAlias

import pytest
import slow_reference as slow
import torch
from credit_kit import fit_into, forward_of
from torch import Tensor

from creditgrid.core.errors import TaskError
from creditgrid.core.methods.scalar_cb import ScalarCB
from creditgrid.core.methods.state_bridge import StateBridge
from creditgrid.core.methods.vec import Vec
from creditgrid.core.science.data import ImageData, training_batches
from creditgrid.core.science.estimators import EstimatorNet
from creditgrid.core.science.fitting import FitEpoch, Fitting, fitted
from creditgrid.core.science.network import ResidualMLP
from creditgrid.core.science.per_sample import unit_directions
from creditgrid.core.science.random_streams import generator
from creditgrid.core.units.method import Method

L, WIDTH, C, BATCH, EPOCHS, SEED = 3, 6, 3, 4, 2, 11
History: TypeAlias = list[tuple[float, slow.Parameters]]


@pytest.fixture
def images() -> ImageData:
    """Six training images, 2 x 3 x 3, of 3 classes: two batches an epoch, the second one smaller."""
    draws = generator(0, "images")
    pixels = torch.randint(256, (8, 2, 3, 3), generator=draws, dtype=torch.uint8)
    labels = torch.tensor([0, 1, 2, 2, 1, 0, 1, 2])
    mean, std = torch.tensor([0.4, 0.5]), torch.tensor([0.2, 0.3])
    return ImageData(pixels[:6], labels[:6], pixels[6:], labels[6:], mean, std, num_classes=C)


def _randomise(module: torch.nn.Module, scale: float) -> None:
    draws = generator(1, "test")
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draws, dtype=torch.float64), alpha=scale)


def _network(residual_add: bool = True) -> ResidualMLP:
    network = ResidualMLP(18, WIDTH, C, L, residual_add, 0.3, generator=generator(0, "test")).double()
    _randomise(network, 0.3)
    return network.eval().requires_grad_(False)


def _estimator(out_dim: int, s_dim: int = C) -> EstimatorNet:
    estimator = EstimatorNet(WIDTH, s_dim, out_dim, generator=generator(0, "test")).double()
    _randomise(estimator, 0.02)
    return estimator


def _draw(*shape: int, index: int = 2) -> Tensor:
    return torch.randn(shape, generator=generator(index, "test"), dtype=torch.float64)


def _slow_fit(
    p: slow.Parameters,
    data: ImageData,
    lr: float,
    loss_of: Callable[[Tensor, list[int], int], Tensor],
    after_step: Callable[[], None] = lambda: None,
    *,
    clip: bool = True,
) -> tuple[History, list[float]]:
    """(mean loss, parameters) of each epoch, and the norm of every gradient before clipping."""
    adam, history, norms = slow.Adam(p, lr, clip=clip), [], []
    for epoch in range(1, EPOCHS + 1):
        total = 0.0
        for x, y in training_batches(data, BATCH, SEED, epoch, stream="fit"):
            loss = loss_of(x.double(), y.tolist(), epoch)
            norms.append(adam.step(loss))
            after_step()
            total += loss.item() * len(y)
        history.append((total / len(data.y_train), {name: tensor.detach().clone() for name, tensor in p.items()}))
    return history, norms


def _assert_same_history(run: Iterator[FitEpoch], estimator: EstimatorNet, history: History) -> None:
    assert next(run) == FitEpoch(0, None)
    for epoch, (loss, expected) in enumerate(history, start=1):
        state = next(run)
        assert state.epoch == epoch
        assert state.loss == pytest.approx(loss, rel=1e-9)
        for name, tensor in estimator.state_dict().items():
            torch.testing.assert_close(tensor, expected[name], rtol=1e-7, atol=1e-9)
    assert next(run, None) is None


@pytest.mark.parametrize("residual_add", [True, False])
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_vec_loss_against_one_sample_at_a_time(residual_add: bool, layer: int) -> None:
    network, estimator = _network(residual_add), _estimator(WIDTH)
    x, y, drawn = _draw(5, 18), torch.tensor([0, 2, 1, 1, 2]), _draw(4, 5, WIDTH, index=3)
    found = Vec(eps=1e-2).loss(estimator, forward_of(network, x, y), layer, unit_directions(drawn))
    reference = slow.SlowNetwork(slow.parameters_of(network), residual_add)
    expected = slow.vec_loss(
        slow.parameters_of(estimator), reference, x, y.tolist(), layer=layer, gaussians=drawn, eps=1e-2
    )
    assert found.item() == pytest.approx(expected.item(), rel=1e-10)


@pytest.mark.parametrize("residual_add", [True, False])
@pytest.mark.parametrize(("s_source", "s_dim"), [("e_T", C), ("delta_L", WIDTH)])
def test_scalar_cb_loss_against_one_sample_at_a_time(residual_add: bool, s_source: Any, s_dim: int) -> None:
    network, estimator, average = _network(residual_add), _estimator(1, s_dim), _estimator(1, s_dim)
    _randomise(average, 0.01)
    x, y, noise = _draw(5, 18), torch.tensor([0, 2, 1, 1, 2]), _draw(L, 4, 5, WIDTH, index=3)
    options: Any = {"sigma": 0.3, "temperature": 0.1, "term_grad_weight": 0.7, "s_source": s_source}
    found = ScalarCB(**options).loss(estimator, average, forward_of(network, x, y), noise)
    reference = slow.SlowNetwork(slow.parameters_of(network), residual_add)
    parameters = slow.parameters_of(estimator), slow.parameters_of(average)
    expected = slow.scalar_cb_loss(parameters, reference, x, y.tolist(), noise, **options)
    assert found.item() == pytest.approx(expected.item(), rel=1e-10)
    gradients = torch.autograd.grad(found, list(estimator.parameters()))
    wanted = torch.autograd.grad(expected, [parameters[0][name] for name, _ in estimator.named_parameters()])
    for gradient, slow_gradient in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(gradient, slow_gradient, rtol=1e-9, atol=1e-12)


def test_fitting_vec_against_plain_loops(images: ImageData) -> None:
    network, estimator = _network(), _estimator(WIDTH)
    p, reference = slow.parameters_of(estimator), slow.SlowNetwork(slow.parameters_of(network))
    streams = {
        epoch: (generator(SEED, "fit/layer", epoch), generator(SEED, "fit/perturb", epoch))
        for epoch in range(1, EPOCHS + 1)
    }
    layers = []

    def loss_of(xs: Tensor, labels: list[int], epoch: int) -> Tensor:
        of_layers, of_directions = streams[epoch]
        layers.append(int(torch.randint(L, (), generator=of_layers)))
        drawn = torch.randn(2, len(xs), WIDTH, generator=of_directions, dtype=torch.float64)
        return slow.vec_loss(p, reference, xs, labels, layer=layers[-1], gaussians=drawn, eps=1e-3)

    history, norms = _slow_fit(p, images, 3e-3, loss_of)
    assert len(set(layers)) > 1
    assert max(norms) > 1  # so clipping was needed
    vec = Vec(epochs=EPOCHS, lr=3e-3, num_directions=2, eps=1e-3)
    run = fit_into(estimator, vec, network, images, batch_size=BATCH, seed=SEED)
    _assert_same_history(run, estimator, history)


@pytest.mark.parametrize(("s_source", "s_dim"), [("e_T", C), ("delta_L", WIDTH)])
def test_fitting_scalar_cb_against_plain_loops(images: ImageData, s_source: Any, s_dim: int) -> None:
    network, estimator = _network(), _estimator(1, s_dim)
    p, average = slow.parameters_of(estimator), slow.parameters_of(estimator)
    reference = slow.SlowNetwork(slow.parameters_of(network))
    streams = {epoch: generator(SEED, "fit/perturb", epoch) for epoch in range(1, EPOCHS + 1)}
    options: Any = {"sigma": 0.2, "temperature": 0.05, "term_grad_weight": 0.5, "s_source": s_source}

    def loss_of(xs: Tensor, labels: list[int], epoch: int) -> Tensor:
        noise = torch.randn(L, 3, len(xs), WIDTH, generator=streams[epoch], dtype=torch.float64)
        return slow.scalar_cb_loss((p, average), reference, xs, labels, noise, **options)

    def after_step() -> None:
        for name, tensor in p.items():
            average[name] = (0.9 * average[name] + 0.1 * tensor).detach()

    history, _ = _slow_fit(p, images, 3e-3, loss_of, after_step)
    scalar_cb = ScalarCB(epochs=EPOCHS, lr=3e-3, num_samples=3, ema=0.9, **options)
    run = fit_into(estimator, scalar_cb, network, images, batch_size=BATCH, seed=SEED)
    _assert_same_history(run, estimator, history)


@pytest.mark.parametrize("residual_add", [True, False])
@pytest.mark.parametrize("scale", [1e-2, 30.0])
def test_state_bridge_loss_against_one_sample_at_a_time(residual_add: bool, scale: float) -> None:
    network, estimator = _network(residual_add), _estimator(WIDTH)
    with torch.no_grad():  # terminal states shorter than 1, and longer, where the distance is relative to them
        for name, parameter in network.named_parameters():
            if name.startswith("embed.") or ".w2." in name:
                parameter.mul_(scale)
    x, y = _draw(5, 18), torch.tensor([0, 2, 1, 1, 2])
    lengths = network(x, return_hidden=True)[1][-1].norm(dim=-1)
    assert lengths.max() < 1 if scale < 1 else lengths.min() > 1
    found = StateBridge().loss(estimator, forward_of(network, x, y))
    p = slow.parameters_of(estimator)
    expected = slow.state_bridge_loss(p, slow.SlowNetwork(slow.parameters_of(network), residual_add), x, y.tolist())
    assert found.item() == pytest.approx(expected.item(), rel=1e-10)
    gradients = torch.autograd.grad(found, list(estimator.parameters()))
    wanted = torch.autograd.grad(expected, [p[name] for name, _ in estimator.named_parameters()])
    for gradient, slow_gradient in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(gradient, slow_gradient, rtol=1e-9, atol=1e-12)


def test_fitting_a_state_bridge_against_plain_loops(images: ImageData) -> None:
    network, estimator = _network(), _estimator(WIDTH)
    with torch.no_grad():  # far off, so that its gradient is long and clipping it would show
        estimator.net[6].bias.add_(20)  # type: ignore[operator]
    p, reference = slow.parameters_of(estimator), slow.SlowNetwork(slow.parameters_of(network))

    def loss_of(xs: Tensor, labels: list[int], epoch: int) -> Tensor:
        return slow.state_bridge_loss(p, reference, xs, labels)

    history, norms = _slow_fit(p, images, 3e-3, loss_of, clip=False)
    assert min(norms) > 1.5
    bridge = StateBridge(epochs=EPOCHS, lr=3e-3)
    run = fit_into(estimator, bridge, network, images, batch_size=BATCH, seed=SEED)
    _assert_same_history(run, estimator, history)


def _fits(network: ResidualMLP, images: ImageData, seed: int = SEED) -> list[tuple[EstimatorNet, Iterator[FitEpoch]]]:
    every = (_estimator(WIDTH), _estimator(1), _estimator(1, WIDTH), _estimator(WIDTH))
    estimators = [estimator.to(network.embed.weight.dtype) for estimator in every]
    methods = (
        Vec(epochs=EPOCHS),
        ScalarCB(epochs=EPOCHS),
        ScalarCB(epochs=EPOCHS, s_source="delta_L"),
        StateBridge(epochs=EPOCHS),
    )
    runs = [
        fit_into(estimator, method, network, images, batch_size=BATCH, seed=seed)
        for estimator, method in zip(estimators, methods, strict=True)
    ]
    return list(zip(estimators, runs, strict=True))


def test_fits_hold_in_float32(images: ImageData) -> None:
    for (exact, slow_run), (rounded, run) in zip(
        _fits(_network(), images), _fits(_network().float(), images), strict=True
    ):
        next(slow_run), next(run)
        expected, found = next(slow_run).loss, next(run).loss
        assert found is not None
        assert expected is not None
        # The noise is drawn in the network's dtype, so the two agree on what is fitted but not draw by draw.
        assert math.isfinite(found)
        assert found == pytest.approx(expected, rel=0.5)
        assert all(tensor.dtype == torch.float32 for tensor in rounded.state_dict().values())
        assert all(tensor.dtype == torch.float64 for tensor in exact.state_dict().values())


def test_float32_losses_are_float64_s_to_rounding() -> None:
    network, vec, scalar = _network(), _estimator(WIDTH), _estimator(1, WIDTH)
    x, y = _draw(5, 18), torch.tensor([0, 2, 1, 1, 2])
    directions, noise = unit_directions(_draw(4, 5, WIDTH, index=3)), _draw(L, 4, 5, WIDTH, index=3)
    options: Any = {"sigma": 0.05, "temperature": 0.1, "term_grad_weight": 1.0, "s_source": "delta_L"}
    exact = (
        Vec().loss(vec, forward_of(network, x, y), 1, directions).item(),
        ScalarCB(**options).loss(scalar, copy.deepcopy(scalar), forward_of(network, x, y), noise).item(),
    )
    network, vec, scalar, x = network.float(), vec.float(), scalar.float(), x.float()
    # A central difference of half-width 1e-3 turns float32's 1e-7 into 1e-4.
    forward = forward_of(network, x, y)
    assert Vec().loss(vec, forward, 1, directions.float()).item() == pytest.approx(exact[0], rel=2e-3)
    found = ScalarCB(**options).loss(scalar, copy.deepcopy(scalar), forward, noise.float()).item()
    assert found == pytest.approx(exact[1], rel=1e-4)


def test_a_fit_is_repeated_bit_for_bit_and_follows_its_seed(images: ImageData) -> None:
    network = _network().float()
    first, again, other = (_fits(network, images, seed=seed) for seed in (SEED, SEED, SEED + 1))
    for (one, run), (same, rerun), (different, another) in zip(first, again, other, strict=True):
        assert [state.loss for state in run] == [state.loss for state in rerun]
        assert list(another)
        for name, tensor in one.state_dict().items():
            assert torch.equal(tensor, same.state_dict()[name])
        assert not torch.equal(one.net[0].weight, different.net[0].weight)  # type: ignore[arg-type]


def test_a_fit_touches_neither_the_network_nor_the_global_random_state(images: ImageData) -> None:
    network = _network().requires_grad_(True)
    before, random_state = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    for _, run in _fits(network, images):
        assert [state.epoch for state in run] == [0, 1, 2]
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert torch.equal(torch.get_rng_state(), random_state)


def test_fitting_finds_the_credit(tiny_data: ImageData) -> None:
    network = ResidualMLP(tiny_data.input_dim, 16, 5, 2, w2_std=0.1, generator=generator(0, "init"))
    network.requires_grad_(False)
    vec = EstimatorNet(16, 5, 16, generator=generator(0, "estimator"))
    scalar = EstimatorNet(16, 5, 1, generator=generator(0, "estimator"))
    bridge = EstimatorNet(16, 5, 16, generator=generator(0, "estimator"))
    runs = (
        fit_into(bridge, StateBridge(epochs=15), network, tiny_data, batch_size=20, seed=0),
        fit_into(vec, Vec(epochs=15), network, tiny_data, batch_size=20, seed=0),
        fit_into(scalar, ScalarCB(epochs=15), network, tiny_data, batch_size=20, seed=0),
    )
    for run in runs:
        losses = [state.loss for state in run][1:]
        assert losses[0] is not None
        assert losses[-1] is not None
        assert losses[-1] < 0.5 * losses[0]


# -- fits that are interrupted, and fits of one's own ----------------------------------------------------------------


@pytest.mark.parametrize("method", [Vec(epochs=4), ScalarCB(epochs=4, ema=0.5), StateBridge(epochs=4)])
@pytest.mark.parametrize("after", [0, 2, 3])
def test_an_interrupted_fit_continues_bit_for_bit(images: ImageData, method: Method, after: int) -> None:
    network = _network().float()
    epochs, tensors = _finished(method, Fitting(network, images, BATCH, SEED))
    kept: dict[str, Tensor] = {}
    for at in method.fit(Fitting(network, images, BATCH, SEED)):
        if isinstance(at, FitEpoch) and at.epoch == after:
            assert at.state is not None
            kept = dict(at.state())
            break
    again, found = _finished(method, Fitting(network, images, BATCH, SEED, resume=kept))
    assert [at.epoch for at in again] == list(range(after, 5))
    assert again[0].seconds is None
    assert [at.loss for at in again] == [at.loss for at in epochs[after:]]
    assert found.keys() == tensors.keys()
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in found.items())


def test_a_state_of_another_fit_is_not_used(images: ImageData) -> None:
    network = _network().float()
    wrong = {"epoch": torch.tensor(3), "loss": torch.tensor(0.0)}
    epochs, _ = _finished(Vec(epochs=1), Fitting(network, images, BATCH, SEED, resume=wrong))
    assert [at.epoch for at in epochs] == [0, 1]


class Own(Method):
    """A method of one's own, whose fit gives what a test asks for."""

    name: ClassVar = "own"
    gives: ClassVar[Any] = None

    def fit(self, fitting: Fitting) -> Any:
        assert fitting.hidden_size == WIDTH
        return type(self).gives()


def own(gives: Callable[[], Any]) -> Method:
    return type("Gives", (Own,), {"gives": staticmethod(gives), "__doc__": "As a test asks."})()


def test_a_fit_may_be_a_plain_function_or_a_generator(images: ImageData) -> None:
    fitting = Fitting(_network(), images, BATCH, SEED)

    def epochs() -> Any:
        yield FitEpoch(1, 0.5)
        return {"a": torch.ones(2)}

    assert _finished(own(lambda: {"a": torch.ones(2)}), fitting)[0] == []
    found, tensors = _finished(own(epochs), fitting)
    assert found == [FitEpoch(1, 0.5)]
    assert torch.equal(tensors["a"], torch.ones(2))


@pytest.mark.parametrize(
    ("gives", "message"),
    [
        (lambda: None, "the fit of own returned None"),
        (dict, "the fit of own returned"),
        (lambda: {"a": [1.0]}, "the fit of own returned a list as 'a'"),
        (lambda: (number for number in (1, 2)), "the fit of own yielded a int"),
    ],
)
def test_a_fit_that_gives_something_else_is_named(images: ImageData, gives: Any, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        _finished(own(gives), Fitting(_network(), images, BATCH, SEED))


def _finished(method: Method, fitting: Fitting) -> tuple[list[FitEpoch], dict[str, Tensor]]:
    tensors: dict[str, Tensor] = {}

    def epochs() -> Iterator[FitEpoch]:
        tensors.update((yield from fitted(method, fitting)))

    return list(epochs()), tensors
