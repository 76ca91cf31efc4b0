"""The residual MLP."""

from __future__ import annotations

from typing import ClassVar

from creditgrid.core.units.network import Network


class ResidualMLP(Network):
    """Residual blocks of two linear layers. Protocols, section 1 (Network)."""

    name: ClassVar = "residual_mlp"

    def hidden_shape(self, d_hidden: int) -> tuple[int, ...]:
        return (d_hidden,)
