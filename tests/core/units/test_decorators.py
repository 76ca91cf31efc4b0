"""Units that are written as functions."""

from __future__ import annotations

import inspect

import pytest
from pydantic import Field, ValidationError

from creditgrid.core.experiment import Column
from creditgrid.core.units.dataset import Dataset
from creditgrid.core.units.decorators import dataset, measurement, rule
from creditgrid.core.units.known import group_of
from creditgrid.core.units.measurement import Measurement
from creditgrid.core.units.rule import Rule
from creditgrid.core.units.unit import parameters_of, unfit_unit


@rule(version=2, normalises=True)
def shifted(branch, credit, shift: float = Field(0.1, gt=0, description="The shift.")):
    """The shifted rule."""
    return branch + shift * credit


@dataset(fingerprint="two dots", image_shape=(1, 1, 1), num_train=2, num_test=2, num_classes=2)
def dots():
    """Dots."""
    return {"x_train": 1}


@measurement(columns={"size": "Size, nats.", "count": Column("int64", "How many.")}, after_step=True)
def sizes(measured):
    """Sizes."""
    return {"size": measured, "count": 1}


def test_a_rule_has_the_functions_name_title_source_and_parameters() -> None:
    assert issubclass(shifted, Rule)
    assert group_of(shifted) == "rules"
    assert (shifted.name, shifted.version, shifted.normalises, shifted.title()) == (
        "shifted",
        2,
        True,
        "The shifted rule",
    )
    assert unfit_unit(shifted) is None
    assert list(parameters_of(shifted)) == ["shift"]
    assert shifted.of({"shift": 2.0}).output_gradient(1.0, 3.0) == 7.0
    with pytest.raises(ValidationError):
        shifted.of({"shift": 0.0})
    assert inspect.getsource(shifted).startswith("@rule(version=2")
    assert inspect.getsourcefile(shifted) == __file__
    assert shifted.__module__ == __name__


def test_a_bare_rule_has_no_parameters() -> None:
    @rule
    def plain(branch, credit):
        return credit

    assert plain().output_gradient(1, 2) == 2
    assert not parameters_of(plain)


def test_a_dataset_and_a_measurement() -> None:
    assert issubclass(dots, Dataset)
    assert (dots.fingerprint, dots.image_shape, dots().load()) == ("two dots", (1, 1, 1), {"x_train": 1})
    assert issubclass(sizes, Measurement)
    assert sizes.columns == {"size": Column("float64", "Size, nats."), "count": Column("int64", "How many.")}
    assert sizes.after_step
    assert sizes().measure(3) == {"size": 3, "count": 1}


def test_arguments_that_no_unit_has_are_refused() -> None:
    with pytest.raises(TypeError, match="one takes branch, credit, in this order; it has branch"):

        @rule
        def one(branch):
            return branch

    with pytest.raises(TypeError, match=r"untyped: the parameter kappa needs a type, as in kappa: float = Field"):

        @rule
        def untyped(branch, credit, kappa=0.1):
            return branch

    with pytest.raises(TypeError, match="taken: every unit has 'name' already"):

        @rule
        def taken(branch, credit, name: str = "x"):
            return branch

    with pytest.raises(TypeError, match="asks takes no arguments"):

        @dataset(fingerprint="x", image_shape=(1, 1, 1), num_train=1, num_test=1, num_classes=1)
        def asks(folder):
            return folder

    with pytest.raises(TypeError, match="more takes measured, in this order; it has measured, extra"):

        @measurement(columns={})
        def more(measured, extra):
            return measured
