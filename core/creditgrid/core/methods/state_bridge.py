"""state_bridge: a predictor of the terminal state; the credit is the gradient of the head's loss on it."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from creditgrid.core.units.method import Fit, Method

if TYPE_CHECKING:
    from creditgrid.core.science.fitting import Fitting


class StateBridge(Method):
    """∂CE_sum(head(P(h_l, t_l, e_T)), y)/∂h_l of a fitted predictor P of h_L. Protocols, section 5 (Estimators)."""

    name: ClassVar = "state_bridge"
    side_by_side: ClassVar = True

    epochs: int = Field(100, alias="fit_epochs", ge=0, le=100_000, description="Epochs of fitting.")
    lr: float = Field(1e-3, alias="fit_lr", gt=0, description="Adam's step size in fitting.")

    def fit(self, fitting: Fitting) -> Fit:
        raise NotImplementedError  # stage_runs.run_fit fits it, until the formula is here
