"""Sweeps over HTTP."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from service_fakes import AppClient, Fakes

from creditgrid.core.states import State
from creditgrid.core.wire import TERMINAL_EVENT, CellView, EventView, Page, SweepView, TaskView
from creditgrid.service.api import pagination

SPEC = {"name": "one", "experiment": "linesearch", "axes": {"eta": [0.1]}}
SUB = ["", "/cells", "/tasks", "/failures", "/events", "/summary", "/results"]


def test_submit(client: AppClient, fakes: Fakes) -> None:
    response = client.post("/v1/sweeps", json=SPEC)
    assert response.status_code == 201
    view = SweepView.model_validate_json(response.text)
    assert response.headers["location"] == f"/v1/sweeps/{view.id}"
    assert client.get(response.headers["location"]).json() == response.json()
    assert view.spec == SPEC


@pytest.mark.parametrize("content_type", ["application/yaml", "text/yaml; charset=utf-8", "application/x-yaml"])
def test_submit_yaml(client: AppClient, fakes: Fakes, content_type: str) -> None:
    body = b"# a grid\nname: one\nexperiment: linesearch\naxes: {eta: [0.1]}\n"
    response = client.post("/v1/sweeps", content=body, headers={"Content-Type": content_type})
    assert response.status_code == 201
    assert response.json()["spec"] == SPEC


def test_json_with_a_byte_order_mark(client: AppClient) -> None:
    body = b"\xef\xbb\xbf" + json.dumps(SPEC).encode()
    response = client.post("/v1/sweeps", content=body, headers={"Content-Type": "Application/JSON; charset=UTF-8"})
    assert response.status_code == 201


def test_idempotency(client: AppClient, fakes: Fakes) -> None:
    key = {"Idempotency-Key": "k-1"}
    first = client.post("/v1/sweeps", json=SPEC, headers=key)
    again = client.post("/v1/sweeps", json=SPEC, headers=key)
    assert (again.status_code, again.headers["location"]) == (201, first.headers["location"])
    assert len(fakes.ledger.sweeps) == 1
    other = client.post("/v1/sweeps", json=SPEC | {"name": "two"}, headers=key)
    assert other.status_code == 422
    assert "another body" in other.json()["detail"]
    assert client.post("/v1/sweeps", json=SPEC, headers={"Idempotency-Key": "k-2"}).json()["id"] != first.json()["id"]
    assert client.post("/v1/sweeps", json=SPEC, headers={"Idempotency-Key": ""}).status_code == 422


@pytest.mark.parametrize("path", SUB)
def test_unknown_sweeps(client: AppClient, path: str) -> None:
    response = client.get(f"/v1/sweeps/nope{path}")
    assert response.status_code == 404
    assert "nope" in response.json()["detail"]


@pytest.mark.parametrize("action", ["cancel", "retry", "pause", "resume"])
def test_actions_on_unknown_sweeps(client: AppClient, action: str) -> None:
    assert client.post(f"/v1/sweeps/nope/{action}").status_code == 404


def pages(client: AppClient, path: str, limit: int) -> list[Any]:
    items: list[Any] = []
    cursor: str | None = None
    while True:
        query: dict[str, Any] = {"limit": limit} | ({"cursor": cursor} if cursor else {})
        page = client.get(path, params=query).json()
        assert len(page["items"]) <= limit
        items += page["items"]
        cursor = page["next"]
        if cursor is None:
            return items
        assert not cursor.isdecimal()  # nobody is tempted to count


def test_lists_are_paged(client: AppClient) -> None:
    ids = [client.post("/v1/sweeps", json=SPEC | {"name": f"n{i}"}).json()["id"] for i in range(5)]
    for limit in (1, 2, 5, 1000):
        assert [item["id"] for item in pages(client, "/v1/sweeps", limit)] == ids[::-1]
        assert [item["index"] for item in pages(client, f"/v1/sweeps/{ids[0]}/cells", limit)] == [0, 1, 2]
        keys = [item["key"] for item in pages(client, f"/v1/sweeps/{ids[0]}/tasks", limit)]
        assert keys == ["a" * 64, "b" * 64, "c" * 64]
    assert all(item["spec"] is None for item in client.get("/v1/sweeps").json()["items"])


def test_lists_by_state(client: AppClient, fakes: Fakes, sweep: str) -> None:
    other = client.post("/v1/sweeps", json=SPEC).json()["id"]
    fakes.ledger.finish(other)
    assert [item["id"] for item in client.get("/v1/sweeps?state=running").json()["items"]] == [sweep]
    assert [item["id"] for item in client.get("/v1/sweeps?state=succeeded").json()["items"]] == [other]
    assert client.get("/v1/sweeps?state=failed").json() == {"items": [], "next": None}
    assert client.get(f"/v1/sweeps/{sweep}/cells?state=failed").json()["items"] == []


def test_items_are_wire_models(client: AppClient, sweep: str) -> None:
    Page[SweepView].model_validate_json(client.get("/v1/sweeps").text)
    Page[CellView].model_validate_json(client.get(f"/v1/sweeps/{sweep}/cells").text)
    Page[TaskView].model_validate_json(client.get(f"/v1/sweeps/{sweep}/tasks").text)
    failures = client.get(f"/v1/sweeps/{sweep}/failures").json()
    assert failures["items"][0]["cause"] == "boom"
    assert client.get(f"/v1/sweeps/{sweep}/summary").json()["rows"] == [{"method": "dfa", "best_eta": 0.1}]


@pytest.mark.parametrize(
    "cursor", ["5", "!!", "ü", "YWJj", "LTE", "OTk5OTk5OTk5OTk5OTk5OTk5OTk5OTk5", "Mi41", "=", "A"]
)
def test_made_up_cursors(client: AppClient, sweep: str, cursor: str) -> None:
    for path in ("/v1/sweeps", f"/v1/sweeps/{sweep}/cells"):
        response = client.get(path, params={"cursor": cursor})
        assert response.status_code == 400, path
        assert "cursor" in response.json()["detail"]


def test_long_cursors(client: AppClient) -> None:
    assert client.get("/v1/sweeps", params={"cursor": "x" * 1001}).status_code == 422


@given(st.integers(0, 10**18 - 1))
def test_number_cursors_come_back(position: int) -> None:
    cursor = pagination.encode(position)
    assert cursor is not None
    assert re.fullmatch(r"[\w-]+", cursor, re.ASCII)
    assert pagination.decode_number(cursor) == position


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=200))
def test_text_cursors_come_back(position: str) -> None:
    assert pagination.decode(pagination.encode(position) or "") == position


def test_cancel(client: AppClient, fakes: Fakes, sweep: str) -> None:
    for _ in range(2):  # the second time changes nothing
        response = client.post(f"/v1/sweeps/{sweep}/cancel")
        assert (response.status_code, response.json()["state"]) == (200, "cancelled")
    other = client.post("/v1/sweeps", json=SPEC).json()["id"]
    fakes.ledger.finish(other)
    response = client.post(f"/v1/sweeps/{other}/cancel")
    assert response.status_code == 409
    assert "ended" in response.json()["detail"]


def conditions(response: httpx.Response) -> list[str]:
    return [condition["type"] for condition in response.json()["conditions"]]


def test_a_second_cancel_says_that_it_changed_nothing(client: AppClient, sweep: str) -> None:
    assert conditions(client.post(f"/v1/sweeps/{sweep}/cancel")) == []
    second = client.post(f"/v1/sweeps/{sweep}/cancel")
    assert (second.status_code, conditions(second)) == (200, ["unchanged"])
    assert "nothing was changed: it was cancelled before" in second.text
    assert conditions(client.get(f"/v1/sweeps/{sweep}")) == []


def test_pause_and_resume(client: AppClient, fakes: Fakes, sweep: str) -> None:
    for action, paused in (("pause", True), ("resume", False)):
        first, second = (client.post(f"/v1/sweeps/{sweep}/{action}") for _ in range(2))
        assert (first.status_code, first.json()["paused"], conditions(first)) == (200, paused, [])
        assert (second.status_code, second.json()["paused"], conditions(second)) == (200, paused, ["unchanged"])
    fakes.ledger.finish(sweep)
    assert [client.post(f"/v1/sweeps/{sweep}/{action}").status_code for action in ("pause", "resume")] == [409, 409]


def test_extend(client: AppClient, sweep: str) -> None:
    path = f"/v1/sweeps/{sweep}/extend"
    response = client.post(path, json={"axes": {"seed": [1, 2]}, "include": [{"eta": 0.5}]})
    assert (response.status_code, response.json()["cells"], conditions(response)) == (200, 6, [])
    yaml = client.post(path, content=b"axes: {seed: [3]}", headers={"Content-Type": "application/yaml"})
    assert (yaml.status_code, yaml.json()["cells"]) == (200, 7)
    assert conditions(client.post(path, json={"axes": {"seed": []}})) == ["unchanged"]


@pytest.mark.parametrize(
    ("body", "status", "pointer"),
    [
        ({"axes": {"speed": [1]}}, 422, "/axes/speed"),
        ({"axis": {"seed": [1]}}, 422, "/axis"),
        ({"axes": [1]}, 422, "/axes"),
        ([1], 422, ""),
    ],
)
def test_extensions_that_make_no_sense(client: AppClient, sweep: str, body: Any, status: int, pointer: str) -> None:
    response = client.post(f"/v1/sweeps/{sweep}/extend", json=body)
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["errors"][0]["pointer"] == pointer
    assert client.get(f"/v1/sweeps/{sweep}").json()["cells"] == 3


def test_an_extension_of_an_unknown_sweep(client: AppClient) -> None:
    assert client.post("/v1/sweeps/nope/extend", json={"axes": {"seed": [1]}}).status_code == 404


def test_retry(client: AppClient, fakes: Fakes, sweep: str) -> None:
    assert client.post(f"/v1/sweeps/{sweep}/retry").status_code == 409
    fakes.ledger.finish(sweep, State.FAILED)
    response = client.post(f"/v1/sweeps/{sweep}/retry")
    assert (response.status_code, response.json()["state"]) == (200, "pending")


# -- events (of sweeps that have ended; test_app streams one that runs, over a socket) --


def received(response: httpx.Response) -> list[dict[str, str]]:
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    messages = []
    for block in response.text.split("\n\n"):
        lines = [line.split(": ", 1) for line in block.split("\n") if line and not line.startswith(":")]
        if lines:
            messages.append(dict(line for line in lines if len(line) == 2))
    return messages


def test_events_of_an_ended_sweep(client: AppClient, fakes: Fakes, sweep: str) -> None:
    fakes.ledger.emit("another", "not.ours")
    fakes.ledger.emit(sweep, "call.finished", note="two\nlines")
    fakes.ledger.finish(sweep)
    messages = received(client.get(f"/v1/sweeps/{sweep}/events"))
    assert [(m["id"], m["event"]) for m in messages] == [
        ("1", "sweep.created"),
        ("3", "call.finished"),
        ("4", TERMINAL_EVENT),
    ]
    events = [EventView.model_validate_json(message["data"]) for message in messages]
    assert events == [event for event in fakes.ledger.events if event.sweep == sweep]


@pytest.mark.parametrize(("after", "ids"), [(0, [1, 2, 3]), (1, [2, 3]), (2, [3]), (3, [])])
def test_events_continue_after_an_id(client: AppClient, fakes: Fakes, sweep: str, after: int, ids: list[int]) -> None:
    fakes.ledger.emit(sweep, "note")
    fakes.ledger.finish(sweep)
    path = f"/v1/sweeps/{sweep}/events"
    by_header = received(client.get(path, headers={"Last-Event-ID": str(after)}))
    by_query = received(client.get(path, params={"after": after}))
    assert [int(m["id"]) for m in by_header] == [int(m["id"]) for m in by_query] == ids


def test_an_ended_sweep_that_was_retried_streams_on(client: AppClient, fakes: Fakes, sweep: str) -> None:
    fakes.ledger.finish(sweep, State.FAILED)
    fakes.control.retry(sweep)
    fakes.ledger.finish(sweep)
    messages = received(client.get(f"/v1/sweeps/{sweep}/events"))
    assert [m["event"] for m in messages] == ["sweep.created", TERMINAL_EVENT, "sweep.retried", TERMINAL_EVENT]


def test_more_events_than_are_read_at_a_time(client: AppClient, fakes: Fakes, sweep: str) -> None:
    for _ in range(1200):
        fakes.ledger.emit(sweep, "note")
    fakes.ledger.finish(sweep)
    ids = [int(m["id"]) for m in received(client.get(f"/v1/sweeps/{sweep}/events"))]
    assert ids == list(range(1, 1203))


@pytest.mark.parametrize("given_id", ["x", "-1", "1.5", "99", "9" * 30, "٣"])
def test_bad_event_ids(client: AppClient, fakes: Fakes, sweep: str, given_id: str) -> None:
    fakes.ledger.finish(sweep)
    response = client.get(f"/v1/sweeps/{sweep}/events", headers={"Last-Event-ID": given_id.encode()})
    assert response.status_code == 400
    assert "event" in response.json()["detail"].lower()


def test_an_empty_event_id_is_none(client: AppClient, fakes: Fakes, sweep: str) -> None:
    fakes.ledger.finish(sweep)
    assert len(received(client.get(f"/v1/sweeps/{sweep}/events", headers={"Last-Event-ID": ""}))) == 2
    assert client.get(f"/v1/sweeps/{sweep}/events?after=-1").status_code == 422
    assert client.get(f"/v1/sweeps/{sweep}/events?after=99").status_code == 400
