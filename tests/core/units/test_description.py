"""Units as data, and the classes that come from it."""

from __future__ import annotations

import json
from typing import Any, ClassVar, Literal

import pytest
from pydantic import Field

from creditgrid.core.errors import CodeError
from creditgrid.core.experiment import Column
from creditgrid.core.units.dataset import Dataset
from creditgrid.core.units.description import FACTS, describe, described, schema_of
from creditgrid.core.units.known import BASES, installed
from creditgrid.core.units.measurement import Measurement
from creditgrid.core.units.method import Method, is_fitted
from creditgrid.core.units.unit import parameters_of


class Linear(Method):
    """A linear map.

    More of it.
    """

    name = "linear_map"
    uses_feedback = False
    exact = True
    ridge: float = Field(1e-3, ge=0, lt=1.5, alias="linear_ridge", description="Weight λ of the ridge, dimensionless.")
    form: Literal["a", "b"] = Field("a", alias="linear_form", description="Which.")
    steps: int | None = Field(None, gt=0, le=7, alias="linear_steps", description="Steps; null: as many as needed.")
    needed: bool = Field(alias="linear_needed", description="No default.")

    def fit(self, fitting: Any) -> Any:
        return {}


class Images(Dataset):
    """Images."""

    name = "images"
    fingerprint = "images-1"
    image_shape = (1, 8, 8)
    num_train, num_test, num_classes = 10, 5, 2


class Rank(Measurement):
    """A rank."""

    name = "rank"
    columns: ClassVar = {"a_rank": Column("float64", "Rank, dimensions.")}
    after_step = True


def remade(unit: Any) -> Any:
    return described(json.loads(json.dumps(describe(unit))))


def test_a_described_method_has_the_parameters_and_facts_of_the_unit() -> None:
    found = remade(Linear)
    assert issubclass(found, Method)
    assert (found.__name__, found.name, found.title(), found.version) == ("Linear", "linear_map", "A linear map", 1)
    assert (found.exact, found.uses_feedback, is_fitted(found)) == (True, False, True)
    mine, theirs = parameters_of(Linear), parameters_of(found)
    assert list(mine) == list(theirs)
    for name, info in mine.items():
        other = theirs[name]
        assert (info.annotation, info.metadata, info.alias) == (other.annotation, other.metadata, other.alias)
        assert (info.is_required(), info.description) == (other.is_required(), other.description)
        assert info.is_required() or info.default == other.default
    assert found.of({"linear_ridge": 0.5, "linear_needed": True}).ridge == 0.5
    assert schema_of(describe(Linear))["linear_ridge"]["exclusiveMaximum"] == 1.5
    with pytest.raises(CodeError, match="cannot compute"):
        found.of({"linear_needed": True}).fit(None)


def test_every_unit_of_this_installation_can_be_described() -> None:
    for group in installed().groups.values():
        for unit in group.values():
            found = remade(unit)
            assert describe(found)["parameters"] == describe(unit)["parameters"]
            assert describe(found)["facts"] == describe(unit)["facts"]


def test_all_that_a_group_declares_is_described() -> None:
    for group, base in BASES.items():
        declared = base.__class_vars__ - {"name", "version", "columns"}
        assert declared == set(FACTS[group])


def test_datasets_and_measurements_keep_what_they_declare() -> None:
    data, rank = remade(Images), remade(Rank)
    assert (data.fingerprint, data.image_shape, data.num_train) == ("images-1", (1, 8, 8), 10)
    assert (rank.columns, rank.after_step) == (Rank.columns, True)


def test_what_cannot_be_a_column_is_refused() -> None:
    class Listed(Method):
        """A list."""

        name = "listed"
        values: list[float] = Field([1.0], description="Values.")

    class Mixed(Method):
        """Two types."""

        name = "mixed"
        value: int | str = Field(1, description="A value.")

    class Bare(Dataset):
        """Nothing."""

        name = "bare"

    class Empty(Measurement):
        """Nothing."""

        name = "empty"

    for unit, said in ((Listed, "the parameter 'values' of listed cannot be a column"), (Mixed, "several types")):
        with pytest.raises(CodeError, match=said) as caught:
            describe(unit)
        assert "test_description.py:" in str(caught.value)
    with pytest.raises(CodeError, match="bare declares no fingerprint and no image_shape"):
        describe(Bare)
    with pytest.raises(CodeError, match="empty declares no columns"):
        describe(Empty)


def test_a_damaged_description_is_named() -> None:
    with pytest.raises(CodeError, match="send the code again"):
        described({"group": "methods"})
