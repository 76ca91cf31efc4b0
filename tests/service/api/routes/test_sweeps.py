"""Sweeps over HTTP."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from service_fakes import AppClient, Fakes, serving
from sweeping import House, one_cell_groups

from creditgrid.core.states import State
from creditgrid.core.wire import CellView, Extension, Page, SweepView, TaskView
from creditgrid.service.api.app import create_app
from creditgrid.service.api.shared_reads import LIVE_S
from creditgrid.service.settings import Settings

SPEC = {"name": "one", "experiment": "linesearch", "axes": {"eta": [0.1]}}
SUB = ["", "/cells", "/tasks", "/failures", "/events", "/summary", "/results"]


def test_submit(client: AppClient, fakes: Fakes) -> None:
    response = client.post("/v1/sweeps", json=SPEC)
    assert response.status_code == 201
    view = SweepView.model_validate_json(response.text)
    assert response.headers["location"] == f"/v1/sweeps/{view.id}"
    assert client.get(response.headers["location"]).json() == response.json()
    assert view.spec == SPEC


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
def test_invalid_extensions(client: AppClient, sweep: str, body: Any, status: int, pointer: str) -> None:
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


@pytest.fixture
def house_client(house: House, settings: Settings) -> Iterator[AppClient]:
    """A client of a service whose scheduler the test steps."""
    with serving(create_app(house.services, settings), started=False) as found:
        yield found


def shows(client: AppClient, path: str, **expected: Any) -> bool:
    """Whether the answer has these values, or comes to have them within the time that a step of a call may take."""
    deadline = time.monotonic() + 10 * LIVE_S
    while True:
        found = client.get(path).json()
        if all(found[name] == value for name, value in expected.items()):
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)


def test_a_status_shows_each_change(house: House, house_client: AppClient) -> None:
    sweep = house.submit(**one_cell_groups(3))
    path = f"/v1/sweeps/{sweep}"
    get = house_client.get
    assert get(path).json()["counts"] == {"pending": 3}
    house.step()
    assert shows(house_client, path, counts={"queued": 3})
    one, two, three = house.runner.calls
    house.runner.start_call(one)
    house.step()
    assert shows(house_client, path, state="running", counts={"queued": 2, "running": 1})
    assert [activity["call"] for activity in get(path).json()["active"]] == [one]
    house.runner.work(one)
    house.runner.fail(two)
    house.step(2)
    assert shows(house_client, path, counts={"succeeded": 1, "failed": 1, "queued": 1})
    assert get(f"{path}/cells?state=failed").json()["items"][0]["index"] == 1
    house.runner.degraded = "no node answers"  # in memory alone
    assert shows(house_client, path, conditions=[{"type": "degraded", "message": "no node answers"}])
    house.runner.degraded = None
    house.control.pause(sweep)
    assert get(path).json()["paused"] is True
    house.control.resume(sweep)
    assert get(path).json()["paused"] is False
    house.runner.work(three)
    house.step(2)
    assert get(path).json()["state"] == get("/v1/sweeps").json()["items"][0]["state"] == "failed"
    assert len(get(f"{path}/failures").json()["items"]) == 1
    house.control.retry(sweep)
    assert get(path).json()["state"] == "pending"
    house.drain()
    assert get(path).json()["state"] == get("/v1/sweeps").json()["items"][0]["state"] == "succeeded"
    assert get(f"{path}/failures").json()["items"] == []
    assert get(f"{path}/summary").json()["complete"] is True
    assert house.control.extend(sweep, Extension(axes={"group": [7]})) == 1
    assert get(path).json()["cells"] == 4
    assert get(f"{path}/summary").json()["complete"] is False
    house.control.cancel(sweep)
    assert get(path).json()["state"] == "cancelled"


def test_an_ended_sweep_is_not_read_again_while_others_run(
    house: House, house_client: AppClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = house.submit(**one_cell_groups(1))
    house.drain()
    other = house.submit(**one_cell_groups(2, first=10))
    reads: list[str] = []
    inner = house.services.sweeps.get

    def counted(sweep: str) -> SweepView:
        reads.append(sweep)
        return inner(sweep)

    monkeypatch.setattr(house.services.sweeps, "get", counted)
    first = house_client.get(f"/v1/sweeps/{ended}")
    house.control.pause(other)
    house.control.resume(other)
    house.drain()
    again = house_client.get(f"/v1/sweeps/{ended}", headers={"If-None-Match": first.headers["etag"]})
    assert again.status_code == 304
    assert reads == [ended]
    assert house_client.get(f"/v1/sweeps/{other}").json()["state"] == "succeeded"
