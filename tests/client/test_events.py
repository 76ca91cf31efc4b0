"""Server-sent events: decoding, and continuing after the stream was lost."""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Iterator
from itertools import pairwise

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from creditgrid.client import events
from creditgrid.client.client import Client
from creditgrid.client.connection import TRIES, Connection
from creditgrid.client.errors import CannotConnect, NotFound, Unauthorised, UnexpectedAnswer
from creditgrid.client.events import EventStream
from creditgrid.core.states import State
from creditgrid.core.wire import EventView


def event(id_: int, type_: str = "call.finished", message: str = "") -> EventView:
    data = {"message": message}
    return EventView.model_validate(
        {"id": id_, "sweep": "s", "at": "2026-01-01T00:00:00Z", "type": type_, "data": data}
    )


def stream(chunks: Iterable[bytes], content_type: str = "text/event-stream") -> EventStream:
    """A stream that arrives in these chunks."""

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers={"Content-Type": content_type}, content=iter(chunks))

    return EventStream(Connection(None, None, 1.0, httpx.MockTransport(answer)), "s")


def test_decoding_by_the_standard() -> None:
    first, *rest = [event(n, message="\u2028 line separator").model_dump_json() for n in (1, 2, 3, 4)]
    split = first.replace(",", ",\r\ndata:  ")  # lines are joined, one space is dropped
    body = (
        f": comment\n\nid: 1\nevent: call.finished\ndata: {split}\n\n"
        ": another\n\n"
        "event: nothing\n\n"  # no data: no message
        "data\n\n"  # a field without a colon is an empty one
        f"unknown: x\rretry: 5\rdata: {rest[0]}\r\r"
        f"id: a\0b\ndata:{rest[1]}\n\n"
        f"data: {rest[2]}"  # cut off
    )
    received = list(stream([body.encode()]).history())
    assert [found.id for found in received] == [1, 2, 3]
    assert {found.data["message"] for found in received} == {"\u2028 line separator"}


text = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\r\n\0"))


@given(
    st.lists(st.tuples(text, text), max_size=5),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.lists(st.integers(0, 1000), max_size=20),
)
def test_any_cut_into_chunks_decodes_the_same(messages, end: str, cuts: list[int]) -> None:
    sent = [event(n, type_, message) for n, (type_, message) in enumerate(messages)]
    lines: list[str] = []
    for found in sent:
        data = found.model_dump_json(indent=1).split("\n")
        lines += [f"id: {found.id}", f"event: {found.type}", *(f"data: {line}" for line in data), ""]
    body = "".join(line + end for line in lines).encode()
    edges = sorted({0, len(body), *(cut for cut in cuts if cut < len(body))})
    assert list(stream([body[a:b] for a, b in pairwise(edges)]).history()) == sent


def test_a_compressed_stream() -> None:
    body = gzip.compress(f"data: {event(1).model_dump_json()}\n\n".encode())

    def answer(request: httpx.Request) -> httpx.Response:
        headers = {"Content-Type": "text/event-stream", "Content-Encoding": "gzip"}
        return httpx.Response(200, headers=headers, content=iter([body[:20], body[20:]]))

    connection = Connection(None, None, 1.0, httpx.MockTransport(answer))
    assert list(EventStream(connection, "s").history()) == [event(1)]


def test_a_closed_stream_ends_at_the_next_bytes_even_of_a_comment() -> None:
    def chunks() -> Iterator[bytes]:
        yield b": hello\n\n"
        closing.close()
        yield b": keep-alive\n\n"
        raise AssertionError("it is still read")

    closing = stream(chunks())
    assert list(closing.follow()) == []


def emit_five(service) -> str:
    sweep = service.add()
    for type_ in ("sweep.created", "call.started", "call.finished", "call.failed", "sweep.finished"):
        service.emit(sweep, type_, "a\u2028b")
    return sweep


def last_event_ids(service) -> list[str | None]:
    return [headers.get("Last-Event-ID") for _, path, headers, _ in service.log if path.endswith("/events")]


def test_events_come_in_order_and_end(service, client) -> None:
    sweep = client.sweep(emit_five(service))
    received = list(sweep.events())
    assert [event.id for event in received] == [10, 20, 30, 40, 50]
    assert received[-1].type == "sweep.finished"
    assert received[0].data["message"] == "a\u2028b"
    assert [event.id for event in sweep.events(since=30)] == [40, 50]
    assert last_event_ids(service) == [None, "30"]


def test_a_lost_stream_is_taken_up_where_it_ended(service, client, pauses) -> None:
    sweep = client.sweep(emit_five(service))
    service.event_limits.extend([2, 0, 1])
    assert [event.id for event in sweep.events()] == [10, 20, 30, 40, 50]
    assert last_event_ids(service) == [None, "20", "20", "30"]
    assert len(pauses) == 3


def test_a_service_that_is_away_for_a_while(service, client, pauses) -> None:
    sweep = client.sweep(emit_five(service))
    service.event_limits.append(3)
    stream = sweep.events()
    first = [next(stream) for _ in range(3)]
    service.faults.extend(["drop before", "html 502", "drop before"])
    assert [event.id for event in [*first, *stream]] == [10, 20, 30, 40, 50]


def test_a_stream_that_never_comes_back(service, client, pauses) -> None:
    sweep = client.sweep(emit_five(service))
    service.event_limits.extend([1] + [0] * 100)
    with pytest.raises(CannotConnect, match="lost the connection"):
        list(sweep.events())
    assert len(pauses) == TRIES - 1


def test_events_that_are_sent_again_come_once() -> None:
    def message(id_: int, type_: str) -> str:
        return f"id: {id_}\ndata: {event(id_, type_).model_dump_json()}\n\n"

    known = message(1, "a") + message(2, "b")
    bodies = iter([known, known + message(3, "sweep.finished")])
    view = {"id": "s", "name": "n", "experiment": "e", "state": "running", "priority": 0, "cells": 1, "counts": {}}

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/events"):
            return httpx.Response(200, text=next(bodies), headers={"Content-Type": "text/event-stream"})
        return httpx.Response(200, json=view | {"created_at": "2026-01-01T00:00:00Z"})

    with Client(transport=httpx.MockTransport(answer)) as client:
        assert [event.id for event in client.sweep("s").events()] == [1, 2, 3]


def test_a_finished_sweep_whose_events_are_all_known_has_no_more(service, client, pauses) -> None:
    sweep = client.sweep(emit_five(service))
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
    with pytest.raises(UnexpectedAnswer, match=r"/v1/sweeps/s/events sends an event that cannot be read: \{\}"):
        next(stream([b"data: {}\n\n"]).follow())


def test_an_answer_that_is_no_stream_of_events() -> None:
    with pytest.raises(UnexpectedAnswer, match=r"/v1/sweeps/s/events sends no events: .*'text/html'"):
        next(stream([b"<html>"], "text/html").follow())


def test_history_ends_where_the_stream_pauses(service, client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "QUIET_S", 0.3)
    sweep = service.add()
    service.emit(sweep, "sweep.created")
    service.emit(sweep, "call.started")
    assert [event.id for event in client.sweep(sweep).history()] == [10, 20]
    assert [event.id for event in client.sweep(emit_five(service)).history()] == [10, 20, 30, 40, 50]
    with pytest.raises(NotFound):
        client.sweep("none")
