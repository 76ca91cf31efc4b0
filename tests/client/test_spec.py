"""Specs as JSON documents: what is read, what becomes plain, what is refused, and where relative datasets lead."""

from __future__ import annotations

import io
import json
import math
import os
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from creditgrid.client.spec import load_spec, spec_document
from creditgrid.core.errors import SpecError
from creditgrid.core.spec.model import parse
from creditgrid.core.wire import MAX_SPEC_BYTES


def test_numbers_of_numpy_and_sequences_become_plain() -> None:
    made = spec_document(
        {
            "axes": {
                "eta": list(np.logspace(-3, -1, 3)),
                "seed": range(3),
                "width": (np.int64(4), np.float32(0.5), Fraction(1, 4), True, None),
            }
        }
    )
    assert made == {"axes": {"eta": [0.001, 0.01, 0.1], "seed": [0, 1, 2], "width": [4, 0.5, 0.25, True, None]}}
    assert {type(value) for value in made["axes"]["width"]} == {int, float, bool, type(None)}
    assert json.loads(json.dumps(made)) == made


def test_a_spec_model_and_a_file(tmp_path: Path) -> None:
    spec = {"name": "x", "experiment": "linesearch", "axes": {"eta": [0.1]}, "retry": {"max": 1}}
    sent = spec_document(parse(spec))
    assert parse(sent) == parse(spec)
    path = tmp_path / "x.json"
    path.write_text(json.dumps(spec))
    assert spec_document(path) == spec_document(str(path)) == spec


def test_what_json_cannot_carry_is_refused_where_it_stands() -> None:
    with pytest.raises(SpecError) as caught:
        spec_document(
            {
                "fixed": {"a/b": math.nan, "x~y": Path("/data"), "array": np.ones(2), "bytes": b"x", "set": {1}},
                "axes": {"eta": [0.1, math.inf, np.float64("-inf")]},
                "include": [{3: 1}],
            }
        )
    assert {(fault.pointer, fault.detail) for fault in caught.value.faults} == {
        ("/fixed/a~1b", "nan is not a finite number"),
        ("/fixed/x~0y", "a spec holds plain values, not PosixPath: use str()"),
        ("/fixed/array", "a spec holds plain values, not ndarray: use .tolist()"),
        ("/fixed/bytes", "a spec holds plain values, not bytes"),
        ("/fixed/set", "a spec holds plain values, not set"),
        ("/axes/eta/1", "inf is not a finite number"),
        ("/axes/eta/2", "-inf is not a finite number"),
        ("/include/0", "the key 3 is not a string"),
    }


def test_other_things_are_no_specs() -> None:
    with pytest.raises(SpecError, match="a mapping, a SweepSpec or a path"):
        spec_document([1, 2])  # type: ignore[arg-type]


def test_nothing_is_sent_of_a_refused_spec(service, client) -> None:
    for send in (client.submit, client.plan):
        with pytest.raises(SpecError, match="/axes/eta/0: nan"):
            send({"name": "x", "experiment": "linesearch", "axes": {"eta": [math.nan]}})
    assert service.log == []


def refusal(path: Path | str) -> str:
    with pytest.raises(SpecError) as caught:
        load_spec(path)
    return str(caught.value)


def test_yaml_and_json_read_the_same(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("name: x\naxes: {eta: [1e-5, on]}\n")
    (tmp_path / "a.json").write_text('{"name": "x", "axes": {"eta": [1e-5, "on"]}}')
    assert load_spec(tmp_path / "a.yaml") == load_spec(str(tmp_path / "a.json"))
    assert load_spec(tmp_path / "a.yaml") == {"name": "x", "axes": {"eta": [1e-5, "on"]}}


def test_faults_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    assert "there is no such file" in refusal(path)
    assert str(path) in refusal(path)
    assert "that is a folder" in refusal(tmp_path)
    path.write_bytes(b"name: x\nname: y\n")
    assert f"{path}: line 2, column 1: the key 'name' is given twice" in refusal(path)
    path.write_bytes("name: é".encode("latin-1"))
    assert "byte 0xe9 at offset 6 is not UTF-8" in refusal(path)
    path.write_bytes(b"")
    assert "the file holds nothing" in refusal(path)
    path.write_bytes(b"- a\n- b\n")
    assert "the file holds a list" in refusal(path)
    path.write_bytes(b"just text")
    assert "the file holds a str" in refusal(path)


def test_a_large_file_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "huge.yaml"
    with path.open("wb") as file:
        file.truncate(2**36)  # a hole that no memory would hold
    assert "68,719,476,736 bytes long" in refusal(path)


def test_a_device_without_end_is_read_no_further() -> None:
    assert f"more than the {MAX_SPEC_BYTES:,}" in refusal("/dev/zero")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    path = tmp_path / "secret.yaml"
    path.write_text("name: x")
    path.chmod(0)
    assert "cannot be read: Permission denied" in refusal(path)


def standard_input(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def test_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    standard_input(monkeypatch, b"name: x\nfixed: {dataset: ./images}")
    assert load_spec("-") == {"name": "x", "fixed": {"dataset": str(tmp_path / "images")}}
    standard_input(monkeypatch, b"#" * (MAX_SPEC_BYTES + 100))
    assert "standard input: " in refusal("-")
    standard_input(monkeypatch, b"[")
    assert "standard input: not YAML" in refusal("-")


def test_relative_datasets_are_found_from_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "specs").mkdir()
    path = tmp_path / "specs" / "s.yaml"
    path.write_text(
        "fixed: {dataset: ../images, name: ./kept}\n"
        "axes: {dataset: [./a, cifar10, /abs/b, ../c/d, 3], path: [./kept]}\n"
        "include: [{dataset: ./e}, {eta: 1}, 7]\n"
        "exclude: [{dataset: ./a}]\n"
    )
    monkeypatch.chdir(tmp_path)
    assert load_spec("specs/s.yaml") == {
        "fixed": {"dataset": str(tmp_path / "images"), "name": "./kept"},
        "axes": {
            "dataset": [str(tmp_path / "specs/a"), "cifar10", "/abs/b", str(tmp_path / "c/d"), 3],
            "path": ["./kept"],
        },
        "include": [{"dataset": str(tmp_path / "specs/e")}, {"eta": 1}, 7],
        "exclude": [{"dataset": str(tmp_path / "specs/a")}],
    }


@pytest.mark.parametrize(
    "text", ["fixed: 3", "axes: [dataset]", "axes: {dataset: ./a}", "include: {dataset: ./a}", "{}"]
)
def test_odd_shapes_are_left_to_the_service(tmp_path: Path, text: str) -> None:
    path = tmp_path / "odd.yaml"
    path.write_text(text)
    assert isinstance(load_spec(path), dict)
