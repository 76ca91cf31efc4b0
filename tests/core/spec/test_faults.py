"""A pointer leads to the value whose path it was made from."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from toy_spec import steps_of

from creditgrid.core.spec.faults import pointer


@given(st.lists(st.text(min_size=1), min_size=1, max_size=4))
def test_pointers_escape_keys(parts: list[str]) -> None:
    nested: Any = "here"
    for part in reversed(parts):
        nested = {part: nested}
    value = nested
    for step in steps_of(pointer(*parts)):
        value = value[step]
    assert value == "here"
