"""Errors of the service, as a person reads them: each fault once, in a list."""

from __future__ import annotations

import pytest

from creditgrid.client.errors import InvalidRequest
from creditgrid.core.wire import Problem, ProblemError

FAULTS = [ProblemError(detail="no such axis", pointer="/axes/etaa"), ProblemError(detail="give a name")]
LIST = "\n  /axes/etaa: no such axis\n  /: give a name"


@pytest.mark.parametrize(
    ("detail", "faults", "text"),
    [
        ("the spec has 2 faults: /axes/etaa: no such axis; /: give a name", FAULTS, f"the spec has 2 faults{LIST}"),
        ("the request is invalid", FAULTS, f"the request is invalid{LIST}"),
        ("there is no sweep 's1'", [], "there is no sweep 's1'"),
        ("", [], "Unprocessable Entity"),
    ],
)
def test_each_fault_is_shown_once(detail: str, faults: list[ProblemError], text: str) -> None:
    problem = Problem(title="Unprocessable Entity", status=422, detail=detail, errors=faults)
    assert str(InvalidRequest(problem)) == text
