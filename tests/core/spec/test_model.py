"""Documents that are no spec are refused before any experiment is asked."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from toy_spec import JSON, resolves

from creditgrid.core.errors import Fault, SpecError
from creditgrid.core.spec.model import parse


@pytest.mark.parametrize("document", [None, [], "spec", 3, [{"name": "n"}]])
def test_what_is_no_object_is_no_spec(document: Any) -> None:
    with pytest.raises(SpecError, match="a sweep spec is an object"):
        parse(document)


def test_missing_keys_are_named() -> None:
    with pytest.raises(SpecError) as caught:
        parse({})
    assert {fault.pointer for fault in caught.value.faults} == {"/name", "/experiment"}


@given(JSON)
def test_anything_at_all_is_a_spec_or_a_spec_error(document: Any) -> None:
    refused: list[Fault] = []
    try:
        parse(document)
    except SpecError as error:
        refused = list(error.faults)
    assert all(resolves(fault.pointer, document) for fault in refused)
