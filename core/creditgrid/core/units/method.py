"""A credit method: what takes the place of the gradient of the loss at each hidden state, and how it is fitted."""

# ruff: noqa: ARG002 (a method that a subclass may define has the arguments that it gets)

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from creditgrid.core.units.unit import Unit

if TYPE_CHECKING:
    from torch import Tensor

    from creditgrid.core.science.fitting import FitEpoch, Fitting
    from creditgrid.core.science.forward import Forward
    from creditgrid.core.units.shape import Shape
    from creditgrid.core.work import Work

FIT_SETTINGS = frozenset({"batch_size", "estimator", "network", "residual_add", "seed"})
"""What the key of a fit holds besides the fields of its method."""
Fit: TypeAlias = "Mapping[str, Tensor] | Generator[FitEpoch, None, Mapping[str, Tensor]]"


class Method(Unit):
    """Base of credit methods.

    A method that defines ``fit`` is fitted on a frozen checkpoint before it is measured. Its parameters are then those
    of its fit. One without parameters that must be fitted defines ``credit`` alone.
    """

    uses_feedback: ClassVar[bool] = False
    """Whether ``credit`` gets the fixed matrices of feedback alignment, ``B.0`` … ``B.{L-1}``, each (n, C), as its
    tensors. Such a method has no fit."""
    exact: ClassVar[bool] = False
    """Whether its credit is the gradient itself, so that a small raw step along it must lower the loss."""
    baseline: ClassVar[bool] = False
    """Whether fitted methods are compared with it: they should do better than this."""
    side_by_side: ClassVar[bool] = False
    """Whether ``credit`` also takes networks side by side: hidden states (S, b, …) instead of (b, …). Without it,
    CreditGrid calls it once for each network."""

    def fit(self, fitting: Fitting) -> Fit:
        """The tensors of the fitted method, by name.

        A fit of many epochs is a generator: it yields a ``FitEpoch`` after each epoch and returns the tensors. If its
        epochs have a ``state``, an interrupted fit is started again with the last one as ``fitting.resume``.
        """
        raise NotImplementedError

    def load(self, tensors: Mapping[str, Tensor]) -> Any:
        """What ``credit`` gets, made once from the tensors of the fit (or of the feedback), on their device and in
        their precision: an nn.Module, say. By default the tensors themselves."""
        return tensors

    def credit(self, forward: Forward, fitted: Any) -> Tensor:
        """The credits of a batch for the layers l = ``forward.first`` … L-1: (L - first, b, n).

        All L layers, and the shape of the hidden states instead of n, are accepted as well. ``fitted`` is what ``load``
        returned; no tensors for a method that needs none. Gradients are enabled, and the result is detached.
        """
        raise NotImplementedError

    def predicted_states(self, forward: Forward, fitted: Any) -> Tensor:
        """What a method that predicts h_L takes it for, from each layer: (L - first, b, n).

        The rows of credit_recovery then have its mean squared error, ``pred_error``.
        """
        raise NotImplementedError

    def fit_cost(self, shape: Shape, batch: int) -> Work | None:
        """The work of one batch of the fit, in single precision; None: nobody can know."""
        return None

    def epochs_of_fit(self) -> float:
        """How often the fit passes over the training set; for its cost."""
        return 1.0

    def fitted_bytes(self, shape: Shape) -> int | None:
        """The bytes of the fitted tensors' file; None: nobody can know."""
        return None

    def credit_cost(self, shape: Shape, samples: float, layers: float) -> Work | None:
        """The work of the credits of ``layers`` layers on samples whose hidden states are known; None: unknown."""
        return None


def is_fitted(method: type[Method]) -> bool:
    """Whether the method has a fit."""
    return method.fit is not Method.fit


def predicts_states(method: type[Method]) -> bool:
    """Whether the method predicts h_L."""
    return method.predicted_states is not Method.predicted_states
