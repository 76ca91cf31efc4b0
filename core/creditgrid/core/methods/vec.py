"""vec: a vector field, fitted to the gradient at the head and to the loss's slopes below it."""

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


class Vec(Method):
    """A(h_l, t_l, e_T), a fitted vector field. Protocols, section 5 (Estimators)."""

    name: ClassVar = "vec"
    version: ClassVar = 2  # the directions have unit length
    side_by_side: ClassVar = True

    epochs: int = Field(60, alias="fit_epochs", ge=0, le=100_000, description="Epochs of fitting.")
    lr: float = Field(1e-3, alias="fit_lr", gt=0, description="Adam's step size in fitting.")
    num_directions: int = Field(4, alias="vec_directions", ge=1, le=1024, description="Number M of directions.")
    eps: float = Field(1e-3, alias="vec_eps", gt=0, description="Half-width ε of the central difference.")

    def fit(self, fitting: Fitting) -> Generator[FitEpoch, None, Mapping[str, Tensor]]:
        """Fit A by `loss`, for one block drawn uniformly for each batch, and with M directions for each sample."""
        import torch

        from creditgrid.core.science.estimators import EstimatorNet
        from creditgrid.core.science.fitting import fit_by_adam
        from creditgrid.core.science.per_sample import unit_directions

        width, blocks = fitting.hidden_size, fitting.network.num_blocks
        start = fitting.generator("vec/init", device="cpu")
        field = EstimatorNet(width, fitting.num_classes, width, generator=start).to(fitting.device, fitting.dtype)

        def loss_of(forward: Forward, draws: Draws) -> Tensor:
            # Drawn on the CPU: a layer drawn on a GPU would have to be waited for.
            layer = int(torch.randint(blocks, (), generator=draws("layer", "cpu")))
            shape, like = (self.num_directions, len(forward.y), width), forward.logits
            drawn = torch.randn(shape, generator=draws("perturb"), dtype=like.dtype, device=like.device)
            return self.loss(field, forward, layer, unit_directions(drawn))

        yield from fit_by_adam(fitting, field, loss_of, epochs=self.epochs, lr=self.lr)
        return field.state_dict()

    def loss(self, field: EstimatorNet, forward: Forward, layer: int, directions: Tensor) -> Tensor:
        """mean_b ‖A(h_L, 1, e_T) - δ_L‖² + (1/M) Σ_j mean_b (⟨A(h_l, t_l, e_T), v_j⟩ - g_j)² for block l = ``layer``.

        Directions v (M, b, n) have unit length. g_j is the central difference (CE(h_l + ε v_j) - CE(h_l - ε v_j)) / 2ε
        of the per-sample loss run forward from layer l.
        """
        import torch

        from creditgrid.core.science.per_sample import central_differences

        h, h_last = forward.hiddens[layer], forward.hiddens[-1]
        with torch.no_grad():
            slopes = central_differences(forward.network, h, forward.y, layer, directions, eps=self.eps)
            depths = torch.full((2, 1), 1.0, dtype=h.dtype, device=h.device)
            depths[1] = layer / forward.network.num_blocks
        fields: Tensor = field(torch.stack((h_last, h)), depths, forward.error)
        along = (fields[1] * directions).sum(-1)
        return (fields[0] - forward.terminal_gradient).square().sum(-1).mean() + (along - slopes).square().mean()

    def load(self, tensors: Mapping[str, Tensor]) -> EstimatorNet:
        from creditgrid.core.science.estimators import loaded_estimator

        return loaded_estimator(tensors)

    def credit(self, forward: Forward, fitted: EstimatorNet) -> Tensor:
        found: Tensor = fitted(forward.states, forward.depths, forward.error)
        return found

    def fit_cost(self, shape: Shape, batch: int) -> Work:
        net, depth, hidden = _net(shape), shape.blocks, counts.forward(shape, batch)
        shifted = 2.0 * self.num_directions * batch
        # From layer l, which is drawn uniformly: (L + 1)/2 blocks follow on average.
        slopes = counts.branches(shape, shifted, (depth + 1) / 2).plus(counts.head(shape, shifted))
        fitted = counts.estimate(net, 2 * batch, batch, backward=2)
        drawn = Work(elements=self.num_directions * batch * shape.hidden * (counts.RANDN + 12))
        done = Work.total(hidden, counts.terminal_gradient(shape, batch), slopes, fitted, drawn)
        return counts.fit_step(shape, net, batch, done, 250.0 + 13 * depth)

    def epochs_of_fit(self) -> float:
        return self.epochs

    def fitted_bytes(self, shape: Shape) -> int:
        return counts.estimator_bytes(_net(shape))

    def credit_cost(self, shape: Shape, samples: float, layers: float) -> Work:
        return counts.estimate(_net(shape), samples * layers, samples)


def _net(shape: Shape) -> counts.Net:
    return counts.Net(shape.hidden, shape.classes, shape.hidden)
