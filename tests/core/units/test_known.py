"""Units that cannot be used beside others."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
from pydantic import Field

from creditgrid.core.units.known import installed, unfit
from creditgrid.core.units.method import Method


class Seeded(Method):
    """A fitted method with a field that every fit has."""

    name: ClassVar = "seeded"

    seed: int = Field(1, alias="seeded_seed", description="A number.")

    def fit(self, fitting: Any) -> Any:
        return {}


class Unfitted(Method):
    """No fit, no clash."""

    name: ClassVar = "unfitted"

    seed: int = Field(1, alias="unfitted_seed", description="A number.")


def test_a_fitted_method_has_no_field_of_every_fit() -> None:
    groups = installed().groups
    assert unfit(Seeded, groups) == "seeded has a field 'seed', which the key of every fit has: rename it"
    assert unfit(Unfitted, groups) is None


def test_no_field_hides_what_a_unit_declares() -> None:
    with pytest.warns(UserWarning, match="shadows"):

        class Numbered(Method):
            """Its version would be a parameter."""

            name: ClassVar = "numbered"
            version: int = Field(3, alias="numbered_version", description="A number.")  # type: ignore[misc]

    why = unfit(Numbered, installed().groups)
    assert why == "the field 'version' of Numbered hides what every unit declares: rename it"
