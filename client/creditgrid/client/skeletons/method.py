"""my_unit: a linear map of the hidden state and the output error, fitted by least squares.

A method gives the credit a_l that takes the place of ∂loss/∂h_l. Replace the formula by yours; then
`creditgrid check my_unit.py`.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from creditgrid.core.science.fitting import Fitting
from creditgrid.core.science.forward import Forward
from creditgrid.core.units.method import Method


class MyUnit(Method):
    """a_l = A h_l + B e_T, with A and B fitted to δ_L on h_L."""  # the first line is the title

    name: ClassVar = "my_unit"
    side_by_side: ClassVar = True  # credit() also takes hidden states with leading dimensions (S, b, n)

    # Each field is a parameter in specs, under its alias or its name: a type, bounds, and a description with the unit.
    ridge: float = Field(1e-3, alias="my_unit_ridge", gt=0, description="Ridge added to the normal equations.")

    # Leave fit() out if nothing is fitted. It sees a frozen network and the training data, and must draw random numbers
    # from fitting.generator("name") alone. A fit of many epochs is a generator: it yields a FitEpoch after each.
    def fit(self, fitting: Fitting) -> dict[str, Tensor]:
        # forward has hiddens h_0 … h_L, logits, y, error e_T and terminal_gradient δ_L; images are augmented
        batches = list(fitting.batches(epoch=1))
        z = torch.cat([_features(forward.hiddens[-1], forward.error) for forward in batches])
        wanted = torch.cat([forward.terminal_gradient for forward in batches])
        square = z.mT @ z + self.ridge * torch.eye(z.shape[-1]).to(z)
        return {"weight": torch.linalg.solve(square, z.mT @ wanted)}

    # The credits of the layers forward.first … L-1: (L - first, b, n), in the precision of the hidden states.
    def credit(self, forward: Forward, fitted: Any) -> Tensor:
        h = forward.states
        weight: Tensor = fitted["weight"]
        return _features(h, forward.error.expand(*h.shape[:-1], -1)) @ weight


def _features(h: Tensor, error: Tensor) -> Tensor:
    return torch.cat((h, error, torch.ones_like(h[..., :1])), -1)
