"""Backpropagation: the gradient itself, which the other methods estimate."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from creditgrid.core.units.method import Method


class OracleBP(Method):
    """∂CE/∂h_l by backprop. Protocols, section 4 (Credit sources)."""

    name: ClassVar = "oracle_bp"
    exact: ClassVar = True
    side_by_side: ClassVar = True

    oracle_reduction: Literal["mean", "sum"] = Field(
        "mean",
        description="Reduction of the loss before its gradient: mean over the batch (1/b of a sample's own), or sum.",
    )
