"""The effective rank of an update."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from creditgrid.core.experiment import Column
from creditgrid.core.units.measurement import Measured, Measurement


class EffectiveRank(Measurement):
    """exp of the entropy of the singular values of the update, mean over the matrices of the updated blocks.

    With singular values σ_i of a matrix and p_i = σ_i/Σσ it is exp(-Σ p_i ln p_i): between 1 and the smaller side of
    the matrix. A tensor with more dimensions is a matrix whose rows are its first dimension. A matrix that did not move
    does not count. Roy and Vetterli (2007, The effective rank).
    """

    name: ClassVar = "effective_rank"
    after_step: ClassVar = True
    columns: ClassVar = {
        "effective_rank": Column(
            "float64", "exp of the entropy of the update's singular values, mean over the blocks' matrices; from 1."
        )
    }

    def measure(self, measured: Measured) -> Mapping[str, float | None]:
        import torch

        assert measured.update is not None
        ranks = []
        for name, update in measured.update.items():
            if not name.startswith("blocks.") or update.dim() < 2:
                continue
            values = torch.linalg.svdvals(update.double().flatten(1))
            if not values.isfinite().all():
                return {"effective_rank": None}
            if (total := values.sum()) > 0:
                ranks.append(torch.special.entr(values / total).sum().exp().item())
        return {"effective_rank": sum(ranks) / len(ranks) if ranks else None}
