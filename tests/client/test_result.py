"""Rows as Arrow, pandas and Polars."""

from __future__ import annotations

import sys

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from creditgrid.client.errors import PackageMissing
from creditgrid.client.result import Result

TABLE = pa.table({"method": ["dfa", "vec", None], "eta": [1e-3, 1e-2, 0.1]})


def test_a_result_wraps_a_table() -> None:
    result = Result(TABLE)
    assert len(result) == 3
    assert repr(result) == "Result(3 rows: method, eta)"
    assert result.to_pylist()[1] == {"method": "vec", "eta": 1e-2}
    frame = result.to_pandas()
    assert isinstance(frame, pd.DataFrame)
    assert frame["eta"].tolist() == [1e-3, 1e-2, 0.1]
    polars_frame = result.to_polars()
    assert isinstance(polars_frame, pl.DataFrame)
    assert polars_frame["method"].to_list() == ["dfa", "vec", None]


@pytest.mark.parametrize(("package", "convert"), [("pandas", Result.to_pandas), ("polars", Result.to_polars)])
def test_missing_packages_are_named(package: str, convert, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(PackageMissing, match=f"pip install {package}"):
        convert(Result(TABLE))


def test_rows_of_a_query_and_a_sweep(service, client) -> None:
    service.add()
    assert client.query("SELECT * FROM results").table.equals(service.table)
    assert client.sweep("s1").results().table.equals(service.table)
    assert service.log[0][3] == b'{"sql":"SELECT * FROM results"}'
