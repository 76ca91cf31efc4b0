"""Specs as plain JSON documents."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from creditgrid.client.document import document
from creditgrid.core.errors import SpecError
from creditgrid.core.spec.model import parse


def test_numbers_of_numpy_and_sequences_become_plain() -> None:
    made = document(
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
    sent = document(parse(spec))
    assert parse(sent) == parse(spec)
    path = tmp_path / "x.json"
    path.write_text(json.dumps(spec))
    assert document(path) == document(str(path)) == spec


def test_what_json_cannot_carry_is_refused_where_it_stands() -> None:
    with pytest.raises(SpecError) as caught:
        document(
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
        document([1, 2])  # type: ignore[arg-type]


def test_nothing_is_sent_of_a_refused_spec(service, client) -> None:
    for send in (client.submit, client.plan):
        with pytest.raises(SpecError, match="/axes/eta/0: nan"):
            send({"name": "x", "experiment": "linesearch", "axes": {"eta": [math.nan]}})
    assert service.log == []
