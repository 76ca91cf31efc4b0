"""Canonical JSON and keys: equal values have one text, and a value without an exact text is refused."""

from __future__ import annotations

import enum
import hashlib
import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from creditgrid.core.fingerprint import Keys, canonical_json, digest

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=20
)


class Colour(enum.StrEnum):
    RED = "red"


def shuffled(value: Any, rng: random.Random) -> Any:
    """An equal value with the keys of its objects in another order."""
    if isinstance(value, dict):
        items = [(name, shuffled(item, rng)) for name, item in value.items()]
        rng.shuffle(items)
        return dict(items)
    if isinstance(value, list):
        return [shuffled(item, rng) for item in value]
    return value


def by_hand(value: Any) -> str:
    """A second, plainer implementation of canonical JSON."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return json.dumps(value)
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(name)}:{by_hand(value[name])}" for name in sorted(value)) + "}"
    return "[" + ",".join(by_hand(item) for item in value) + "]"


@given(VALUES)
def test_it_reads_back_as_the_same_value(value: Any) -> None:
    text = canonical_json(value)
    assert text.isascii()
    back = json.loads(text)
    assert back == value
    assert canonical_json(back) == text


@given(VALUES, st.randoms(use_true_random=False))
def test_the_order_of_insertion_does_not_count(value: Any, rng: random.Random) -> None:
    assert canonical_json(shuffled(value, rng)) == canonical_json(value)


@given(VALUES)
def test_the_digest_is_sha256_of_the_text(value: Any) -> None:
    assert canonical_json(value) == by_hand(value)
    assert digest(value) == hashlib.sha256(by_hand(value).encode()).hexdigest()


def test_types_that_print_alike_have_different_texts() -> None:
    values = [1, 1.0, True, "1", None, "null", [1], [[1]], {"1": 1}, 0.0, -0.0, False, "", []]
    assert len({digest(value) for value in values}) == len(values)


@given(VALUES, st.sampled_from([float("nan"), float("inf"), float("-inf")]), st.randoms(use_true_random=False))
def test_a_number_that_is_not_finite_is_refused_anywhere(value: Any, bad: float, rng: random.Random) -> None:
    for holder in (bad, [value, bad], {"a": value, "b": bad}, {"a": [{"b": [bad]}]}, (value, (bad,))):
        with pytest.raises(ValueError, match="cannot be part of an identity"):
            canonical_json(holder)


@pytest.mark.parametrize(
    "value",
    [
        np.float64(1.0),
        np.int64(1),
        np.zeros(1),
        Colour.RED,
        b"bytes",
        {1, 2},
        Path("/tmp"),
        1j,
        object(),
        {1: "one"},
        {None: 1},
        {"a": {True: 1}},
        {Colour.RED: 1},
        [1, [object()]],
    ],
)
def test_a_value_without_an_exact_text_is_refused(value: Any) -> None:
    with pytest.raises(TypeError, match="cannot be part of an identity"):
        canonical_json(value)


# -- keys of many tasks --------------------------------------------------------------------------------------------

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
members = scalars | st.sampled_from([0, 0.0, -0.0, False, 1, 1.0, True]) | st.lists(scalars, max_size=2)
several = st.lists(st.dictionaries(st.sampled_from("abcde\u00e9"), members, max_size=5), max_size=8)


@given(several)
def test_a_key_is_the_digest_of_the_payload_whatever_came_before(some: list[dict[str, Any]]) -> None:
    keys = Keys("kind")
    for version, params in enumerate(some, 1):
        parents = {name: digest(name) for name in params}
        payload = {"kind": "kind", "version": version, "params": params, "parents": parents}
        assert keys.key(version, params, parents) == (digest(payload), canonical_json(params))


def test_a_list_that_was_changed_in_place_has_another_key() -> None:
    keys, shared = Keys("kind"), [1, 2]
    params = {"a": 1, "widths": shared}
    before, _ = keys.key(1, params, {})
    shared.append(3)
    after, text = keys.key(1, params, {})
    assert before != after
    assert text == '{"a":1,"widths":[1,2,3]}'


@pytest.mark.parametrize("value", [math.nan, math.inf, object(), {1: 2}, b"x", np.float64(1.0)])
def test_a_key_of_what_has_no_one_text_is_refused_each_time(value: Any) -> None:
    keys = Keys("kind")
    keys.key(1, {"a": 1}, {})
    for _ in range(2):
        with pytest.raises((TypeError, ValueError)):
            keys.key(1, {"a": value}, {})
    assert keys.key(1, {"a": 1}, {})[1] == '{"a":1}'
