"""scalar_cb: a scalar value of the loss, consistent between layers; the credit is its gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from creditgrid.core.units.method import Fit, Method

if TYPE_CHECKING:
    from creditgrid.core.science.fitting import Fitting


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

    def fit(self, fitting: Fitting) -> Fit:
        raise NotImplementedError  # stage_runs.run_fit fits it, until the formula is here
