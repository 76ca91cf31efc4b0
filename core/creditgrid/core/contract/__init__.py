"""The contract of units and experiments: what the service relies on, as checks that anyone can run on theirs.

They are the same for what ships (in the tests), for the author of a unit (``creditgrid check``), and, the quick ones,
for code that is sent with a sweep.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from creditgrid.core.contract.checks import Finding
    from creditgrid.core.units.unit import Unit


def check_units(units: Iterable[type[Unit]], quick: bool = True) -> list[Finding]:
    """What is wrong with units, by the quick checks or by all. It imports torch."""
    from creditgrid.core.contract.suite import check_units

    return check_units(units, quick)
