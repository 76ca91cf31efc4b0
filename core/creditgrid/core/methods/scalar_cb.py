"""scalar_cb: a scalar value of the loss, consistent between layers; the credit is its gradient."""

from __future__ import annotations

import copy
import math
from collections.abc import Generator, Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from creditgrid.core.science import counts
from creditgrid.core.units.method import Method
from creditgrid.core.work import Work

if TYPE_CHECKING:
    from torch import Tensor

    from creditgrid.core.science.estimators import EstimatorNet
    from creditgrid.core.science.fitting import Draws, FitEpoch, Fitting
    from creditgrid.core.science.forward import Forward
    from creditgrid.core.units.shape import Shape


class ScalarCB(Method):
    """∂V(h_l, t_l, s)/∂h_l of a fitted scalar value V. Protocols, section 5 (Estimators)."""

    name: ClassVar = "scalar_cb"
    side_by_side: ClassVar = True

    epochs: int = Field(100, alias="fit_epochs", ge=0, le=100_000, description="Epochs of fitting.")
    lr: float = Field(1e-3, alias="fit_lr", gt=0, description="Adam's step size in fitting.")
    temperature: float = Field(0.1, alias="cb_lambda", gt=0, description="Temperature λ of the soft minimum, nats.")
    num_samples: int = Field(4, alias="cb_samples", ge=1, le=1024, description="Number K of perturbed next states.")
    sigma: float = Field(0.05, alias="cb_sigma", ge=0, description="Scale σ of the perturbations.")
    ema: float = Field(0.995, alias="cb_ema", ge=0, le=1, description="Decay of the averaged value net.")
    term_grad_weight: float = Field(
        1.0, alias="cb_term_grad_weight", ge=0, description="Weight of the terminal gradient's loss."
    )
    s_source: Literal["e_T", "delta_L"] = Field(
        "e_T", alias="cb_source", description="The signal s, an input of the value net: e_T or δ_L."
    )

    def fit(self, fitting: Fitting) -> Generator[FitEpoch, None, Mapping[str, Tensor]]:
        """Fit V by `loss`, with K noise draws for each state.

        The targets come from an exponential moving average of V, which starts as a copy and after every step becomes
        ema · average + (1 - ema) · V.
        """
        import torch

        from creditgrid.core.science.estimators import EstimatorNet
        from creditgrid.core.science.fitting import fit_by_adam

        width, blocks = fitting.hidden_size, fitting.network.num_blocks
        signal = fitting.num_classes if self.s_source == "e_T" else width
        start = fitting.generator("scalar_cb/init", device="cpu")
        value = EstimatorNet(width, signal, 1, generator=start).to(fitting.device, fitting.dtype)
        average = copy.deepcopy(value).requires_grad_(False)

        def loss_of(forward: Forward, draws: Draws) -> Tensor:
            shape, like = (blocks, self.num_samples, len(forward.y), width), forward.logits
            noise = torch.randn(shape, generator=draws("perturb"), dtype=like.dtype, device=like.device)
            return self.loss(value, average, forward, noise)

        @torch.no_grad()
        def update_average() -> None:
            for slow, fast in zip(average.parameters(), value.parameters(), strict=True):
                slow.lerp_(fast, 1 - self.ema)

        yield from fit_by_adam(
            fitting,
            value,
            loss_of,
            epochs=self.epochs,
            lr=self.lr,
            after_step=update_average,
            kept={"average": average},
        )
        return value.state_dict()

    def loss(self, value: EstimatorNet, average: EstimatorNet, forward: Forward, noise: Tensor) -> Tensor:
        """The three terms that make V a value of the loss, consistent between layers:

        mean_b (V(h_L, 1, s) - CE)² + (1/L) Σ_l mean_b (V(h_l, t_l, s) - V*_l)²
        + term_grad_weight · mean_b ‖∂V(h_L, 1, s)/∂h_L - δ_L‖²,
        V*_l = -λ (logsumexp_k(-V_average(h_{l+1} + σ ξ_lk, t_{l+1}, s)/λ) - ln K), without a gradient.

        Noise ξ is (L, K, b, n); s = e_T or δ_L; λ is ``temperature``.
        """
        import torch

        from creditgrid.core.science.per_sample import cross_entropy

        s, terminal = self._signal(forward), forward.terminal_gradient
        with torch.no_grad():
            value_last = cross_entropy(forward.logits, forward.y)
            h = torch.stack(list(forward.hiddens))
            depths = torch.arange(len(h), dtype=h.dtype, device=h.device).unsqueeze(-1) / forward.network.num_blocks
            around = average(torch.add(h[1:].unsqueeze(1), noise, alpha=self.sigma), depths[1:].unsqueeze(-1), s)
            soft_minimum = torch.logsumexp(around / -self.temperature, 1) - math.log(noise.shape[1])
            targets = -self.temperature * soft_minimum
        values: Tensor = value(h[:-1], depths[:-1], s)
        consistency = (values - targets).square().mean()
        h_last = h[-1].requires_grad_()
        at_end: Tensor = value(h_last, 1.0, s)
        (slope,) = torch.autograd.grad(at_end.sum(), h_last, create_graph=True)
        slope_error = (slope - terminal).square().sum(-1).mean()
        return (at_end - value_last).square().mean() + consistency + self.term_grad_weight * slope_error

    def load(self, tensors: Mapping[str, Tensor]) -> EstimatorNet:
        from creditgrid.core.science.estimators import loaded_estimator

        return loaded_estimator(tensors)

    def credit(self, forward: Forward, fitted: EstimatorNet) -> Tensor:
        import torch

        h = forward.states.detach().requires_grad_()
        # Each value depends on its own h alone, so the gradient of the sum holds the gradient of each value.
        (gradient,) = torch.autograd.grad(fitted(h, forward.depths, self._signal(forward)).sum(), h)
        return gradient

    def _signal(self, forward: Forward) -> Tensor:
        return forward.error if self.s_source == "e_T" else forward.terminal_gradient

    def fit_cost(self, shape: Shape, batch: int) -> Work:
        net, depth, hidden = self._net(shape), shape.blocks, counts.forward(shape, batch)
        around = counts.estimate(net, depth * self.num_samples * batch, batch)
        fitted = counts.estimate(net, depth * batch, batch, backward=2)
        # The value at h_L, its slope, and the gradient of the slope's error: both run through the slope's graph.
        slope = counts.estimate(net, batch, batch, backward=5)
        drawn = Work(elements=depth * self.num_samples * batch * shape.hidden * (counts.RANDN + 4))
        done = Work.total(hidden, counts.terminal_gradient(shape, batch), around, fitted, slope, drawn)
        return counts.fit_step(shape, net, batch, done, 512.0 + 7 * depth)

    def epochs_of_fit(self) -> float:
        return self.epochs

    def fitted_bytes(self, shape: Shape) -> int:
        return counts.estimator_bytes(self._net(shape))

    def credit_cost(self, shape: Shape, samples: float, layers: float) -> Work:
        return counts.estimate(self._net(shape), samples * layers, samples, backward=1)

    def _net(self, shape: Shape) -> counts.Net:
        return counts.Net(shape.hidden, shape.classes if self.s_source == "e_T" else shape.hidden, 1)
