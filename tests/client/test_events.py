"""Server-sent events: decoding, and going on after the stream was lost."""

from __future__ import annotations

import json
from itertools import pairwise

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from creditgrid.client import events
from creditgrid.client.client import Client
from creditgrid.client.connection import TRIES, Connection
from creditgrid.client.errors import CannotConnect, NotFound, Unauthorised, UnexpectedAnswer
from creditgrid.client.events import EventStream, Message, decode
from creditgrid.core.states import State


def test_decoding_by_the_standard() -> None:
    stream = (
        b": comment\n\ndata: one\n\n"
        b"id: 7\nevent: call.finished\ndata: {\r\ndata:  two\n\n"  # lines are joined, one space is dropped
        b"event: nothing\n\n"  # no data: no message
        b"data\n\n"  # a field without a colon is an empty one
        b"unknown: x\rretry: 5\rdata: three\r\r"
        b"id: a\0b\ndata: \xe2\x80\xa8 line separator\n\n"
        b"data: cut off"
    )
    assert list(decode([stream])) == [
        Message("", "message", "one"),
        Message("7", "call.finished", "{\n two"),
        Message("7", "message", ""),
        Message("7", "message", "three"),
        Message("7", "message", "\u2028 line separator"),
    ]


text = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\r\n\0"))


@given(
    st.lists(st.tuples(text, text.filter(bool), st.lists(text, min_size=1)), max_size=5),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.lists(st.integers(0, 400), max_size=20),
)
def test_any_cut_into_chunks_decodes_the_same(messages, end: str, cuts: list[int]) -> None:
    lines = []
    for id_, type_, data in messages:
        lines += [f"id: {id_}", f"event: {type_}", *(f"data: {line}" for line in data), ""]
    stream = "".join(line + end for line in lines).encode()
    edges = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    chunks = [stream[a:b] for a, b in pairwise(edges)]
    decoded = list(decode(chunks))
    # A lone CR at the very end may be half of a CRLF: the last message may then be held back.
    expected = [Message(id_, type_, "\n".join(data)) for id_, type_, data in messages]
    assert decoded == (expected[:-1] if end == "\r" and expected else expected)


def tell_five(service) -> str:
    sweep = service.add()
    for type_ in ("sweep.created", "call.started", "call.finished", "call.failed", "sweep.finished"):
        service.tell(sweep, type_, "a\u2028b")
    return sweep


def last_event_ids(service) -> list[str | None]:
    return [headers.get("Last-Event-ID") for _, path, headers, _ in service.log if path.endswith("/events")]


def test_events_come_in_order_and_end(service, client) -> None:
    sweep = client.sweep(tell_five(service))
    told = list(sweep.events())
    assert [event.id for event in told] == [10, 20, 30, 40, 50]
    assert told[-1].type == "sweep.finished"
    assert told[0].data["message"] == "a\u2028b"
    assert [event.id for event in sweep.events(since=30)] == [40, 50]
    assert last_event_ids(service) == [None, "30"]


def test_a_lost_stream_is_taken_up_where_it_ended(service, client, pauses) -> None:
    sweep = client.sweep(tell_five(service))
    service.event_limits.extend([2, 0, 1])
    assert [event.id for event in sweep.events()] == [10, 20, 30, 40, 50]
    assert last_event_ids(service) == [None, "20", "20", "30"]
    assert len(pauses) == 3


def test_a_service_that_is_away_for_a_while(service, client, pauses) -> None:
    sweep = client.sweep(tell_five(service))
    service.event_limits.append(3)
    stream = sweep.events()
    first = [next(stream) for _ in range(3)]
    service.faults.extend(["drop before", "html 502", "drop before"])
    assert [event.id for event in [*first, *stream]] == [10, 20, 30, 40, 50]


def test_a_stream_that_never_comes_back(service, client, pauses) -> None:
    sweep = client.sweep(tell_five(service))
    service.event_limits.extend([1] + [0] * 100)
    with pytest.raises(CannotConnect, match="lost the connection"):
        list(sweep.events())
    assert len(pauses) == TRIES - 1


def test_a_service_that_tells_all_again_is_heard_once() -> None:
    def event(id_: int, type_: str) -> str:
        data = {"id": id_, "sweep": "s", "at": "2026-01-01T00:00:00Z", "type": type_, "data": {}}
        return f"id: {id_}\ndata: {json.dumps(data)}\n\n"

    bodies = iter([event(1, "a") + event(2, "b"), event(1, "a") + event(2, "b") + event(3, "sweep.finished")])
    view = {"id": "s", "name": "n", "experiment": "e", "state": "running", "priority": 0, "cells": 1, "counts": {}}

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/events"):
            return httpx.Response(200, text=next(bodies))
        return httpx.Response(200, json=view | {"created_at": "2026-01-01T00:00:00Z"})

    with Client(transport=httpx.MockTransport(answer)) as client:
        assert [event.id for event in client.sweep("s").events()] == [1, 2, 3]


def test_a_finished_sweep_whose_events_are_all_known_has_no_more(service, client, pauses) -> None:
    sweep = client.sweep(tell_five(service))
    service.change(sweep.id, State.FAILED)
    assert list(sweep.events(since=50)) == []


def test_a_refusal_is_an_error_at_once(service, client, pauses) -> None:
    sweep = client.sweep(service.add())
    service.sweeps.clear()
    service.events.clear()
    service.events["s1"] = []
    service.token = "changed"
    with pytest.raises(Unauthorised):
        next(sweep.events())
    assert pauses == []


def test_data_that_is_no_event() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, text="data: {}\n\n")

    stream = EventStream(Connection(None, None, 1.0, httpx.MockTransport(answer)), "/v1/sweeps/s/events")
    with pytest.raises(UnexpectedAnswer, match="an event that is none"):
        next(stream.follow(lambda: False))


def test_history_ends_where_the_stream_pauses(service, client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "QUIET_S", 0.3)
    sweep = service.add()
    service.tell(sweep, "sweep.created")
    service.tell(sweep, "call.started")
    assert [event.id for event in client.sweep(sweep).history()] == [10, 20]
    assert [event.id for event in client.sweep(tell_five(service)).history()] == [10, 20, 30, 40, 50]
    with pytest.raises(NotFound):
        client.sweep("none")
