"""Two epochs of a `vec` fit, replayed from the page's formulas alone with the same batches and draws.

The replay takes its networks, credits and gradients from ``recompute_network``, and knows the draws by the names of
their streams. It says whether the directions have unit length, which a loss that is only small cannot say.
"""

from __future__ import annotations

import pytest
import slow_reference as slow
import torch
from credit_kit import fit_into
from recompute_credit import cosine
from recompute_network import (
    depth,
    estimator_output,
    hiddens,
    loss_gradient,
    losses_from,
    output_error,
    stream,
)
from torch import Tensor

from creditgrid.core.datasets import resolve
from creditgrid.core.methods.vec import Vec
from creditgrid.core.science.data import ImageData, normalise, training_batches
from creditgrid.core.science.estimators import EstimatorNet
from creditgrid.core.science.from_artifacts import image_data
from creditgrid.core.science.loading import load
from creditgrid.core.science.network import ResidualMLP
from creditgrid.core.science.random_streams import generator
from creditgrid.core.science.training import train

BATCH, WIDTH, DIRECTIONS, EPS, EPOCHS, SEED = 32, 64, 4, 1e-3, 2, 5


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return image_data(load(dict(resolve("digits").source)), torch.device("cpu"))


@pytest.fixture(scope="module")
def network(digits: ImageData) -> ResidualMLP:
    """A network that has learnt something, so that gradients differ between images."""
    found = ResidualMLP(digits.input_dim, WIDTH, 10, 3, generator=generator(0, "init"))
    for _ in train(found, digits, rule="bp", epochs=3, batch_size=BATCH, lr=1e-3, weight_decay=0.01, seed=0):
        pass
    return found.double().eval().requires_grad_(False)


def estimator() -> EstimatorNet:
    return EstimatorNet(WIDTH, 10, WIDTH, generator=generator(SEED, "fit/vec/init")).double()


def replay(p: slow.Parameters, a: slow.Parameters, data: ImageData, *, unit_length: bool) -> list[float]:
    """Fit the vector field ``a`` in place; the mean loss of each epoch."""
    adam, means = slow.Adam(a, 1e-3), []
    for epoch in range(1, EPOCHS + 1):
        blocks, draws, total = stream(SEED, "fit/layer", epoch), stream(SEED, "fit/perturb", epoch), 0.0
        for x, y in training_batches(data, BATCH, SEED, epoch, stream="fit"):
            loss = batch_loss(p, a, x.double(), y, blocks, draws, unit_length)
            adam.step(loss)
            total += loss.item() * len(y)
        means.append(total / len(data.y_train))
    return means


def batch_loss(
    p: slow.Parameters,
    a: slow.Parameters,
    x: Tensor,
    y: Tensor,
    blocks: torch.Generator,
    draws: torch.Generator,
    unit_length: bool,
) -> Tensor:
    with torch.no_grad():
        states = hiddens(p, x)
        error = output_error(p, states[-1], y)
    at_end = estimator_output(a, states[-1], 1.0, error)
    loss = ((at_end - loss_gradient(p, depth(p), states[-1], y, True)) ** 2).sum(1).mean()
    block = int(torch.randint(depth(p), (), generator=blocks))
    field = estimator_output(a, states[block], block / depth(p), error)
    for gaussian in torch.randn((DIRECTIONS, len(x), WIDTH), generator=draws, dtype=torch.float64):
        length = torch.sqrt((gaussian**2).sum(1, keepdim=True)) + 1e-8
        v = gaussian / length if unit_length else gaussian
        with torch.no_grad():
            ahead, behind = (losses_from(p, block, states[block] + side * EPS * v, y, True) for side in (1, -1))
        loss = loss + (((field * v).sum(1) - (ahead - behind) / (2 * EPS)) ** 2).mean() / DIRECTIONS
    return loss


def gamma(p: slow.Parameters, a: slow.Parameters, data: ImageData) -> float:
    """The mean over blocks and test images of the cosine of the field with the gradient."""
    x, y = normalise(data.x_test, data.mean, data.std).double(), data.y_test
    states = [state.detach() for state in hiddens(p, x)]
    error, blocks = output_error(p, states[-1], y), range(depth(p))
    return sum(
        cosine(estimator_output(a, states[n], n / depth(p), error).detach(), loss_gradient(p, n, states[n], y, True))
        .mean()
        .item()
        for n in blocks
    ) / len(blocks)


def test_two_epochs_follow_the_procedure_with_directions_of_unit_length_alone(
    digits: ImageData, network: ResidualMLP
) -> None:
    ours = estimator()
    vec = Vec(epochs=EPOCHS, num_directions=DIRECTIONS, eps=EPS)
    run = fit_into(ours, vec, network, digits, batch_size=BATCH, seed=SEED)
    losses = [epoch.loss for epoch in run][1:]
    p, found = slow.parameters_of(network), slow.parameters_of(ours)
    with_division, without = slow.parameters_of(estimator()), slow.parameters_of(estimator())
    assert losses == pytest.approx(replay(p, with_division, digits, unit_length=True), rel=1e-9)
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, with_division[name], rtol=1e-5, atol=1e-8)
    replay(p, without, digits, unit_length=False)
    own, published, other = (gamma(p, a, digits) for a in (found, with_division, without))
    assert own == pytest.approx(published, abs=1e-6)
    assert abs(own - other) > 0.05
