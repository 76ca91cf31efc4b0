"""Fitting credit estimators on a frozen network: Protocols, section 5 (Estimators).

A fit is a generator that yields each finished epoch; it takes one Adam step a batch of the augmented training stream.
All that a batch needs is evaluated at once: the layers, the directions v_j and the noise draws ξ_k are dimensions of
one tensor, (L, K, b, d) or (2, M, b, d), which passes through a net in one call. Notation: hidden states h_0 … h_L of
the network, depths t_l = l/L, e_T = softmax(logits) - onehot(y), δ_L = ∂CE_sum/∂h_L, CE per sample.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NotRequired, TypeAlias, TypedDict, Unpack

import torch
from torch import Tensor, nn

from creditgrid.core.science.choices import Signal
from creditgrid.core.science.credit import layer_times, output_error, terminal_gradient
from creditgrid.core.science.data import ImageData, training_batches
from creditgrid.core.science.estimators import EstimatorNet
from creditgrid.core.science.forward import Forward
from creditgrid.core.science.network import ResidualNetwork
from creditgrid.core.science.per_sample import central_differences, cross_entropy, unit_directions
from creditgrid.core.science.random_streams import generator

BatchLoss: TypeAlias = Callable[[Tensor, Tensor, torch.Generator, torch.Generator], Tensor]


@dataclass(frozen=True)
class FitEpoch:
    """A finished epoch of a fit; epoch 0 is the initialisation, which has no loss.

    ``loss`` is the mean over the epoch's samples of the fitting loss, each taken just before its batch's step.
    ``step_size`` is Adam's in this epoch, and ``seconds`` what the epoch took.
    """

    epoch: int
    loss: float | None
    step_size: float | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Fitting:
    """What a method is fitted on: a frozen network, the dataset, and the settings that all fits share."""

    network: ResidualNetwork
    data: ImageData
    batch_size: int
    seed: int

    def batches(self, epoch: int) -> Iterator[Forward]:
        """One epoch, from 1, of the augmented training stream, as the network sees it; the last may be smaller."""
        dtype = self.network.dtype
        for x, y in training_batches(self.data, self.batch_size, self.seed, epoch, stream="fit"):
            with torch.no_grad():
                logits, hiddens = self.network(x.to(dtype), return_hidden=True)
            yield Forward(self.network, hiddens, logits, y)

    def generator(self, stream: str, *index: int) -> torch.Generator:
        """The named random stream ("fit/STREAM", index…) of the fit's seed, on the data's device."""
        return generator(self.seed, f"fit/{stream}", *index, device=self.data.device)


class FitOptions(TypedDict):
    """The options of every fit; see `_fit`."""

    epochs: int
    batch_size: int
    lr: NotRequired[float]
    seed: int


def _fit(
    estimator: EstimatorNet,
    network: ResidualNetwork,
    data: ImageData,
    loss_of: BatchLoss,
    *,
    epochs: int,
    batch_size: int,
    lr: float = 1e-3,
    seed: int,
    clip: bool = True,
    after_step: Callable[[], None] = lambda: None,
) -> Iterator[FitEpoch]:
    """Fit ``estimator`` in place by Adam; yields epoch 0, then each finished epoch.

    The batches are those of `training_batches` in the stream "fit". ``loss_of`` is given a batch x (b, D), y (b,), and
    the streams "fit/layer" and "fit/perturb" of the epoch. With ``clip``, gradient norms are clipped to 1.
    """
    parameters = list(estimator.parameters())
    optimizer = torch.optim.Adam(parameters, lr=lr, fused=True)
    dtype = network.dtype
    yield FitEpoch(0, None)
    for epoch in range(1, epochs + 1):
        started, step_size = time.perf_counter(), float(optimizer.param_groups[0]["lr"])
        layers = generator(seed, "fit/layer", epoch)  # on the CPU: a layer drawn on a GPU would have to be waited for
        perturb = generator(seed, "fit/perturb", epoch, device=data.device)
        total = torch.zeros((), dtype=torch.float64, device=data.device)
        for x, y in training_batches(data, batch_size, seed, epoch, stream="fit"):
            loss = loss_of(x.to(dtype), y, layers, perturb)
            optimizer.zero_grad()
            loss.backward(inputs=parameters)  # type: ignore[no-untyped-call]
            if clip:
                nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            after_step()
            total += loss.detach() * len(y)
        loss_mean = total.item() / len(data.y_train)  # waits for the device
        yield FitEpoch(epoch, loss_mean, step_size, time.perf_counter() - started)


def fit_vec(
    estimator: EstimatorNet,
    network: ResidualNetwork,
    data: ImageData,
    *,
    num_directions: int = 4,
    eps: float = 1e-3,
    **options: Unpack[FitOptions],
) -> Iterator[FitEpoch]:
    """Fit a vector field A in place by `vec_loss`, with M = ``num_directions`` directions for each sample.

    They are drawn from N(0, I) and divided by their length (`unit_directions`), both in the network's dtype.
    """

    def loss_of(x: Tensor, y: Tensor, layers: torch.Generator, perturb: torch.Generator) -> Tensor:
        layer = int(torch.randint(network.num_blocks, (), generator=layers))
        shape = (num_directions, len(y), network.hidden_size)
        drawn = torch.randn(shape, generator=perturb, dtype=x.dtype, device=x.device)
        return vec_loss(estimator, network, x, y, layer=layer, directions=unit_directions(drawn), eps=eps)

    return _fit(estimator, network, data, loss_of, **options)


def vec_loss(
    estimator: EstimatorNet,
    network: ResidualNetwork,
    x: Tensor,
    y: Tensor,
    *,
    layer: int,
    directions: Tensor,
    eps: float,
) -> Tensor:
    """mean_b ‖A(h_L, 1, e_T) - δ_L‖² + (1/M) Σ_j mean_b (⟨A(h_l, t_l, e_T), v_j⟩ - g_j)² for block l = ``layer``.

    x (b, D), y (b,), directions v (M, b, d) of unit length. g_j is the central difference (CE(h_l + ε v_j) -
    CE(h_l - ε v_j)) / 2ε of the per-sample loss run forward from layer l.
    """
    with torch.no_grad():
        logits, hiddens = network(x, return_hidden=True)
        h, h_last = hiddens[layer], hiddens[-1]
        slopes = central_differences(network, h, y, layer, directions, eps=eps)
        depths = torch.full((2, 1), 1.0, dtype=h.dtype, device=h.device)
        depths[1] = layer / network.num_blocks
    terminal = terminal_gradient(network, h_last, y)
    fields: Tensor = estimator(torch.stack((h_last, h)), depths, output_error(logits, y))
    along = (fields[1] * directions).sum(-1)
    return (fields[0] - terminal).square().sum(-1).mean() + (along - slopes).square().mean()


def fit_scalar_cb(
    estimator: EstimatorNet,
    network: ResidualNetwork,
    data: ImageData,
    *,
    temperature: float = 0.1,
    num_samples: int = 4,
    sigma: float = 0.05,
    ema: float = 0.995,
    term_grad_weight: float = 1.0,
    s_source: Signal = "e_T",
    **options: Unpack[FitOptions],
) -> Iterator[FitEpoch]:
    """Fit a scalar value V in place by `scalar_cb_loss`, with K = ``num_samples`` noise draws for each state.

    The targets come from an exponential moving average of V, which starts as a copy and after every step becomes
    ema · average + (1 - ema) · V.
    """
    average = copy.deepcopy(estimator).requires_grad_(False)

    def loss_of(x: Tensor, y: Tensor, _: torch.Generator, perturb: torch.Generator) -> Tensor:
        shape = (network.num_blocks, num_samples, len(y), network.hidden_size)
        return scalar_cb_loss(
            estimator,
            average,
            network,
            x,
            y,
            noise=torch.randn(shape, generator=perturb, dtype=x.dtype, device=x.device),
            sigma=sigma,
            temperature=temperature,
            term_grad_weight=term_grad_weight,
            s_source=s_source,
        )

    @torch.no_grad()
    def update_average() -> None:
        for slow, fast in zip(average.parameters(), estimator.parameters(), strict=True):
            slow.lerp_(fast, 1 - ema)

    return _fit(estimator, network, data, loss_of, after_step=update_average, **options)


def scalar_cb_loss(
    estimator: EstimatorNet,
    average: EstimatorNet,
    network: ResidualNetwork,
    x: Tensor,
    y: Tensor,
    *,
    noise: Tensor,
    sigma: float,
    temperature: float,
    term_grad_weight: float,
    s_source: Signal,
) -> Tensor:
    """The three terms that make V a value of the loss, consistent between layers:

    mean_b (V(h_L, 1, s) - CE)² + (1/L) Σ_l mean_b (V(h_l, t_l, s) - V*_l)²
    + term_grad_weight · mean_b ‖∂V(h_L, 1, s)/∂h_L - δ_L‖²,
    V*_l = -λ (logsumexp_k(-V_average(h_{l+1} + σ ξ_lk, t_{l+1}, s)/λ) - ln K), without a gradient.

    x (b, D), y (b,), noise ξ (L, K, b, d); s = e_T or δ_L; λ is ``temperature``.
    """
    with torch.no_grad():
        logits, hiddens = network(x, return_hidden=True)
        value_last = cross_entropy(logits, y)
        terminal = terminal_gradient(network, hiddens[-1], y)
        s = output_error(logits, y) if s_source == "e_T" else terminal
        h = torch.stack(hiddens)
        depths = torch.arange(len(h), dtype=h.dtype, device=h.device).unsqueeze(-1) / network.num_blocks
        around = average(torch.add(h[1:].unsqueeze(1), noise, alpha=sigma), depths[1:].unsqueeze(-1), s)
        targets = -temperature * (torch.logsumexp(around / -temperature, 1) - math.log(noise.shape[1]))
    values: Tensor = estimator(h[:-1], depths[:-1], s)
    consistency = (values - targets).square().mean()
    h_last = h[-1].requires_grad_()
    value: Tensor = estimator(h_last, 1.0, s)
    (slope,) = torch.autograd.grad(value.sum(), h_last, create_graph=True)
    slope_error = (slope - terminal).square().sum(-1).mean()
    return (value - value_last).square().mean() + consistency + term_grad_weight * slope_error


def fit_state_bridge(
    estimator: EstimatorNet, network: ResidualNetwork, data: ImageData, **options: Unpack[FitOptions]
) -> Iterator[FitEpoch]:
    """Fit a predictor P of the terminal state in place by `state_bridge_loss`, without clipping."""

    def loss_of(x: Tensor, y: Tensor, *_: torch.Generator) -> Tensor:
        return state_bridge_loss(estimator, network, x, y)

    return _fit(estimator, network, data, loss_of, clip=False, **options)


def state_bridge_loss(estimator: EstimatorNet, network: ResidualNetwork, x: Tensor, y: Tensor) -> Tensor:
    """(1/L) Σ_l mean_b ‖(P(h_l, t_l, e_T) - h_L)/max(‖h_L‖₂, 1)‖² over l = 0…L-1; x (b, D), y (b,)."""
    with torch.no_grad():
        logits, hiddens = network(x, return_hidden=True)
        error = output_error(logits, y)
        h, h_last = torch.stack(hiddens[:-1]), hiddens[-1]
        scale = h_last.norm(dim=-1, keepdim=True).clamp_min(1)
    predicted: Tensor = estimator(h, layer_times(h), error)
    distance: Tensor = (predicted - h_last) / scale
    return distance.square().sum(-1).mean()
