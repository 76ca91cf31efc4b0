"""The cosine rule."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from creditgrid.core.units.rule import Rule

if TYPE_CHECKING:
    from torch import Tensor


class Cosine(Rule):
    """mean_b cos(F, a_l). Protocols, section 6 (Local updates)."""

    name: ClassVar = "cosine"

    def output_gradient(self, branch: Tensor, credit: Tensor) -> Tensor:
        from torch.nn import functional as F  # noqa: N812

        along, towards = F.normalize(branch, dim=-1), F.normalize(credit, dim=-1)
        across = towards - (towards * along).sum(-1, keepdim=True) * along
        length: Tensor = branch.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        return across / (length * branch.shape[-2])
