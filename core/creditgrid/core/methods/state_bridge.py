"""state_bridge: a predictor of the terminal state; the credit is the gradient of the head's loss on it."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import TYPE_CHECKING, ClassVar

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


class StateBridge(Method):
    """∂CE_sum(head(P(h_l, t_l, e_T)), y)/∂h_l of a fitted predictor P of h_L. Protocols, section 5 (Estimators)."""

    name: ClassVar = "state_bridge"
    side_by_side: ClassVar = True

    epochs: int = Field(100, alias="fit_epochs", ge=0, le=100_000, description="Epochs of fitting.")
    lr: float = Field(1e-3, alias="fit_lr", gt=0, description="Adam's step size in fitting.")

    def fit(self, fitting: Fitting) -> Generator[FitEpoch, None, Mapping[str, Tensor]]:
        """Fit P by `loss`, without clipping."""
        from creditgrid.core.science.estimators import EstimatorNet
        from creditgrid.core.science.fitting import fit_by_adam

        start = fitting.generator("state_bridge/init", device="cpu")
        width, classes = fitting.hidden_size, fitting.num_classes
        predictor = EstimatorNet(width, classes, width, generator=start).to(fitting.device, fitting.dtype)

        def loss_of(forward: Forward, _: Draws) -> Tensor:
            return self.loss(predictor, forward)

        yield from fit_by_adam(fitting, predictor, loss_of, epochs=self.epochs, lr=self.lr, clip=None)
        return predictor.state_dict()

    def loss(self, predictor: EstimatorNet, forward: Forward) -> Tensor:
        """(1/L) Σ_l mean_b ‖(P(h_l, t_l, e_T) - h_L)/max(‖h_L‖₂, 1)‖² over l = 0…L-1."""
        h_last = forward.hiddens[-1]
        scale = h_last.norm(dim=-1, keepdim=True).clamp_min(1)
        distance: Tensor = (predictor(forward.states, forward.depths, forward.error) - h_last) / scale
        return distance.square().sum(-1).mean()

    def load(self, tensors: Mapping[str, Tensor]) -> EstimatorNet:
        from creditgrid.core.science.estimators import loaded_estimator

        return loaded_estimator(tensors)

    def predicted_states(self, forward: Forward, fitted: EstimatorNet) -> Tensor:
        found: Tensor = fitted(forward.states, forward.depths, forward.error)
        return found

    def credit(self, forward: Forward, fitted: EstimatorNet) -> Tensor:
        import torch

        h = forward.states.detach().requires_grad_()
        predicted = fitted(h, forward.depths, forward.error)
        # Each loss depends on its own h alone, so the gradient of the sum holds the gradient of each loss.
        (gradient,) = torch.autograd.grad(_head_losses(forward, predicted).sum(), h)
        return gradient

    def fit_cost(self, shape: Shape, batch: int) -> Work:
        net, depth, hidden = _net(shape), shape.blocks, counts.forward(shape, batch)
        fitted = counts.estimate(net, depth * batch, batch, backward=2)
        done = Work.total(hidden, fitted, Work(elements=depth * batch * shape.hidden * 8.0))
        return counts.fit_step(shape, net, batch, done, 178.0 + 7 * depth)

    def epochs_of_fit(self) -> float:
        return self.epochs

    def fitted_bytes(self, shape: Shape) -> int:
        return counts.estimator_bytes(_net(shape))

    def credit_cost(self, shape: Shape, samples: float, layers: float) -> Work:
        predicted = counts.estimate(_net(shape), samples * layers, samples, backward=1)
        return predicted.plus(counts.terminal_gradient(shape, samples * layers))


def _net(shape: Shape) -> counts.Net:
    return counts.Net(shape.hidden, shape.classes, shape.hidden)


def _head_losses(forward: Forward, terminal: Tensor) -> Tensor:
    """CE of the head on predicted terminal states (L, b, n) or (L, S, b, n), per sample, in any order."""
    from creditgrid.core.science.per_sample import cross_entropy

    if terminal.dim() == 3:
        return cross_entropy(forward.network.head(terminal), forward.y)
    # Each of S networks has a head of its own for its samples of every layer: (S, L b, n).
    logits = forward.network.head(terminal.transpose(0, 1).flatten(1, 2))
    return cross_entropy(logits, forward.y.repeat(len(terminal)))
