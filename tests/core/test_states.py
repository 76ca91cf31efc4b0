"""The states: finished is final, and every open state can be reached and left."""

from __future__ import annotations

import pytest

from creditgrid.core.states import FINISHED, OPEN, RESULT, TRANSITIONS, WITHOUT_RESULT, State, sources


def test_every_state_is_open_or_finished() -> None:
    assert set(OPEN) | set(FINISHED) == set(State)
    assert not set(OPEN) & set(FINISHED)
    assert set(RESULT) | set(WITHOUT_RESULT) == set(FINISHED)
    assert not set(RESULT) & set(WITHOUT_RESULT)
    assert set(TRANSITIONS) == set(State)


@pytest.mark.parametrize("state", FINISHED)
def test_finished_is_final(state: State) -> None:
    assert state.finished
    assert TRANSITIONS[state] == ()


@pytest.mark.parametrize("state", OPEN)
def test_an_open_state_ends_without_a_result_if_it_must(state: State) -> None:
    assert not state.finished
    assert State.FAILED in TRANSITIONS[state]
    assert State.CANCELLED in TRANSITIONS[state]


def test_nothing_succeeds_that_was_never_handed_out() -> None:
    assert set(sources(State.SUCCEEDED)) == {State.QUEUED, State.RUNNING}
    assert set(sources(State.QUEUED)) == {State.PENDING}
    assert set(sources(State.RUNNING)) == {State.QUEUED}


def test_lost_work_goes_back_to_pending() -> None:
    assert set(sources(State.PENDING)) == {State.QUEUED, State.RUNNING}


def test_only_what_waits_for_others_is_skipped() -> None:
    assert sources(State.SKIPPED) == (State.PENDING,)


def test_sources_are_the_transitions_read_backwards() -> None:
    for target in State:
        assert set(sources(target)) == {state for state in State if target in TRANSITIONS[state]}


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
