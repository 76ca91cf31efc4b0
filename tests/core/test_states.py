"""The states: each is open or finished, and goes over the wire as its name."""

from __future__ import annotations

from creditgrid.core.states import FINISHED, OPEN, RESULT, WITHOUT_RESULT, State


def test_every_state_is_open_or_finished() -> None:
    assert set(OPEN) | set(FINISHED) == set(State)
    assert not set(OPEN) & set(FINISHED)
    assert set(RESULT) | set(WITHOUT_RESULT) == set(FINISHED)
    assert not set(RESULT) & set(WITHOUT_RESULT)
    assert {state for state in State if state.finished} == set(FINISHED)


def test_states_go_over_the_wire_as_their_names() -> None:
    assert [str(state) for state in State] == [
        "pending",
        "queued",
        "running",
        "succeeded",
        "cached",
        "failed",
        "cancelled",
        "skipped",
    ]
