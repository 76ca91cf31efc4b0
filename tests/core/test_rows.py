"""Rows: every parameter is a typed column, and numbers that are not finite are marked."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from creditgrid.core.experiment import Column, Experiment, Params, Summary
from creditgrid.core.experiments.linesearch import EXPERIMENT as LINESEARCH
from creditgrid.core.rows import LEADING, PROVENANCE, RESERVED, columns, schema, table
from creditgrid.core.task import TaskKind


def run(tasks: Any, inputs: Any, device: Any) -> Any:
    raise AssertionError("nothing is run here")


class WideParams(Params):
    whole: int = 0
    real: float = 0.0
    word: Literal["u", "v"] | None = None
    flag: bool | None = None


WIDE = Experiment(
    "wide",
    "Every type",
    WideParams,
    {"loss": Column("float64", "Nats."), "layer": Column("int64", "Index."), "why": Column("string", "Words.")},
    TaskKind("wide", 1, run),
    lambda params, dataset: (TaskKind("wide", 1, run).task({}), ()),
    lambda rows: Summary("", [], [], []),
)


def test_columns_are_leading_parameters_measured_provenance() -> None:
    found = columns(WIDE)
    assert list(found) == [*LEADING, "whole", "real", "word", "flag", "loss", "layer", "why", *PROVENANCE]
    assert found["whole"] == found["layer"] == "int64"
    assert found["real"] == found["loss"] == "float64"
    assert found["word"] == found["why"] == "string"
    assert found["flag"] == "bool"
    assert set(LEADING) | set(PROVENANCE) == RESERVED


def test_the_line_searchs_columns_have_their_types() -> None:
    found = schema(LINESEARCH)
    for name, kind in {
        "seed": pa.int64(),
        "probe_seed": pa.int64(),
        "eta": pa.float64(),
        "method": pa.string(),
        "residual_add": pa.bool_(),
        "delta_loss_same": pa.float64(),
        "started_at": pa.timestamp("us", tz="UTC"),
    }.items():
        assert found.field(name).type == kind


def test_a_row_has_nulls_for_the_columns_it_lacks() -> None:
    at = datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC)
    row = {"whole": 2**62, "real": 0.1, "word": "u", "flag": None, "loss": 1, "layer": 3, "started_at": at}
    made = table(WIDE, [row, {}])
    assert made.schema == schema(WIDE)
    first, second = made.to_pylist()
    assert first == {**dict.fromkeys(columns(WIDE)), **row, "loss": 1.0, "diverged": False}
    assert second == {**dict.fromkeys(columns(WIDE)), "diverged": False}


BAD = [math.nan, math.inf, -math.inf, np.float32("nan"), np.float64("inf"), np.float16("-inf")]


@pytest.mark.parametrize("bad", BAD, ids=[f"{type(bad).__name__} {bad}" for bad in BAD])
@pytest.mark.parametrize("column", ["loss", "layer"])
def test_a_measured_number_that_is_not_finite_is_null_and_marked(bad: Any, column: str) -> None:
    (row,) = table(WIDE, [{"whole": 1, column: bad}]).to_pylist()
    assert row[column] is None
    assert row["diverged"] is True


@given(st.lists(st.floats() | st.none(), min_size=1, max_size=20))
def test_diverged_is_true_exactly_when_a_number_became_null(losses: list[float | None]) -> None:
    made = table(WIDE, [{"loss": loss} for loss in losses]).to_pylist()
    for loss, row in zip(losses, made, strict=True):
        lost = loss is not None and not math.isfinite(loss)
        assert row["diverged"] is lost
        assert row["loss"] == (None if lost else loss)


def test_the_callers_row_is_not_changed() -> None:
    row = {"loss": math.nan}
    assert table(WIDE, [row]).to_pylist()[0]["diverged"] is True
    assert list(row) == ["loss"]
    assert math.isnan(row["loss"])


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"losss": 1.0}, "wide yields columns it does not declare: losss"),
        ({"loss": "low"}, "does not fit its columns"),
        ({"layer": 10**30}, "does not fit its columns"),
        ({"layer": 1.5}, "a fraction in the whole-number column layer"),
        ({"why": 3}, "does not fit its columns"),
        ({"whole": 2**63}, "does not fit its columns"),
        ({"loss": object()}, "does not fit its columns"),
    ],
)
def test_a_row_that_does_not_fit_is_refused(row: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        table(WIDE, [{"loss": 1.0}, row])
