"""Direct feedback alignment: the output error through fixed random matrices."""

from __future__ import annotations

from typing import ClassVar

from creditgrid.core.units.method import Method


class DFA(Method):
    """e_T B_lᵀ with fixed random matrices B_l (n, C). Protocols, section 4 (Credit sources)."""

    name: ClassVar = "dfa"
    uses_feedback: ClassVar = True
    baseline: ClassVar = True
    side_by_side: ClassVar = True
