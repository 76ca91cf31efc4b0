"""vec: a vector field, fitted to the gradient at the head and to the loss's slopes below it."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from creditgrid.core.units.method import Fit, Method

if TYPE_CHECKING:
    from creditgrid.core.science.fitting import Fitting


class Vec(Method):
    """A(h_l, t_l, e_T), a fitted vector field. Protocols, section 5 (Estimators)."""

    name: ClassVar = "vec"
    version: ClassVar = 2  # the directions have unit length
    side_by_side: ClassVar = True

    epochs: int = Field(60, alias="fit_epochs", ge=0, le=100_000, description="Epochs of fitting.")
    lr: float = Field(1e-3, alias="fit_lr", gt=0, description="Adam's step size in fitting.")
    num_directions: int = Field(4, alias="vec_directions", ge=1, le=1024, description="Number M of directions.")
    eps: float = Field(1e-3, alias="vec_eps", gt=0, description="Half-width ε of the central difference.")

    def fit(self, fitting: Fitting) -> Fit:
        raise NotImplementedError  # stage_runs.run_fit fits it, until the formula is here
