"""Extensions as options and files."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import pytest

from creditgrid.client.cli.extension import extension
from creditgrid.client.errors import BadSetting
from creditgrid.core.errors import SpecError


@pytest.mark.parametrize(
    ("written", "values"),
    [
        ("1,2", [1, 2]),
        ("1e-5", [1e-5]),
        ("vec,dfa", ["vec", "dfa"]),
        ("[1, 2]", [1, 2]),
        ("null,true,1.0", [None, True, 1.0]),
        ("'a,b',c", ["a,b", "c"]),
        ("{logspace: [1e-5, 1e-2, 4]}", {"logspace": [1e-5, 1e-2, 4]}),
        ("a=b", ["a=b"]),
    ],
)
def test_values_are_read_as_yaml(written: str, values: Any) -> None:
    (axes, include) = extension([f"eta={written}"], [], None)
    assert (axes, include) == ({"eta": values}, [])
    found = axes["eta"]
    if isinstance(found, list):
        assert [type(value) for value in found] == [type(value) for value in values]


def test_values_of_one_axis_add_up() -> None:
    assert extension(["eta=1,2", "seed=1", "eta=3"], [], None)[0] == {"eta": [1, 2, 3], "seed": [1]}


def test_datasets_are_found_from_where_they_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "more.yaml").write_text("axes: {dataset: [./one]}")
    monkeypatch.chdir(tmp_path)
    axes, include = extension(["dataset=./two,cifar10"], ["{dataset: ../three}"], "sub/more.yaml")
    assert axes["dataset"] == [str(tmp_path / "sub" / "one"), str(tmp_path / "two"), "cifar10"]
    assert include == [{"dataset": str(tmp_path.parent / "three")}]


def test_a_file_holds_axes_and_cells_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "more.yaml"
    path.write_text("name: grid\naxes: [1]\ninclude: {}\n")
    with pytest.raises(SpecError) as caught:
        extension([], [], str(path))
    assert [fault.pointer for fault in caught.value.faults] == ["/name", "/axes", "/include"]
    assert "an extension has axes and include, not 'name'" in str(caught.value)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"axes: {eta: [1]}")))
    assert extension(["eta=2"], [], "-") == ({"eta": [1, 2]}, [])
    path.write_text("axes: {eta: {range: [3]}}")
    with pytest.raises(BadSetting, match="cannot be joined"):
        extension(["eta=2"], [], str(path))
