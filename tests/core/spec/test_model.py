"""Documents that are not a spec are refused, whatever the experiment."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from toy_spec import JSON, resolves

from creditgrid.core.errors import Fault, SpecError
from creditgrid.core.spec.model import parse


@pytest.mark.parametrize("document", [None, [], "spec", 3, [{"name": "n"}]])
def test_a_spec_is_an_object(document: Any) -> None:
    with pytest.raises(SpecError, match="a sweep spec is an object"):
        parse(document)


def test_missing_keys_are_named() -> None:
    with pytest.raises(SpecError) as caught:
        parse({})
    assert {fault.pointer for fault in caught.value.faults} == {"/name", "/experiment"}


@given(JSON)
def test_any_document_gives_a_spec_or_a_spec_error(document: Any) -> None:
    refused: list[Fault] = []
    try:
        parse(document)
    except SpecError as error:
        refused = list(error.faults)
    assert all(resolves(fault.pointer, document) for fault in refused)
