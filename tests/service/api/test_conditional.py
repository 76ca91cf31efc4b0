"""Answers with an ETag."""

from __future__ import annotations

import pytest
from service_fakes import AppClient, Fakes

from creditgrid.core.wire import SweepView
from creditgrid.service.api.conditional import conditional_response, document

FOUND = document(b"{}")
TAG = FOUND.etag


@pytest.mark.parametrize(
    ("given", "status"),
    [
        (None, 200),
        ([], 200),
        ([TAG], 304),
        ([f"W/{TAG}"], 304),
        ([f'"other", W/"x" ,{TAG}'], 304),
        (['"other"', TAG], 304),
        (["*"], 304),
        ([" * "], 304),
        (['"*"'], 200),
        (['"other"'], 200),
        ([TAG.strip('"')], 200),
        ([TAG[:-2] + '"'], 200),
        (['"' * 10_001], 200),
        ([""], 200),
    ],
)
def test_the_clients_tags(given: list[str] | None, status: int) -> None:
    response = conditional_response(FOUND, given)
    assert response.status_code == status
    assert response.body == (b"" if status == 304 else b"{}")
    assert (response.headers["etag"], response.headers["cache-control"]) == (TAG, "no-cache")


@pytest.mark.parametrize("path", ["", "/cells", "/tasks", "/failures", "/summary"])
def test_what_has_not_changed_is_not_sent_again(client: AppClient, sweep: str, path: str) -> None:
    first = client.get(f"/v1/sweeps/{sweep}{path}")
    assert (first.status_code, first.headers["content-type"]) == (200, "application/json")
    again = client.get(f"/v1/sweeps/{sweep}{path}", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", first.headers["etag"])


def test_a_change_is_seen_at_once(client: AppClient, fakes: Fakes, sweep: str) -> None:
    path = f"/v1/sweeps/{sweep}"
    client.get(path)
    for action, shown in (("pause", True), ("resume", False)):
        listed = client.get("/v1/sweeps").headers["etag"]
        assert client.post(f"{path}/{action}").status_code == 200
        assert client.get(path).json()["paused"] is shown
        changed = client.get("/v1/sweeps", headers={"If-None-Match": listed})
        assert changed.json()["items"][0]["paused"] is shown
    assert client.post(f"{path}/extend", json={"axes": {"seed": [1]}}).status_code == 200
    assert client.get(path).json()["cells"] == 4
    assert client.post(f"{path}/cancel").status_code == 200
    view = SweepView.model_validate_json(client.get(path).text)
    assert view == fakes.ledger.sweep(sweep)
    assert view.state == client.get("/v1/sweeps").json()["items"][0]["state"] == "cancelled"
    client.post(f"{path}/retry")
    assert client.get(path).json()["state"] == "pending"
    assert client.get("/v1/sweeps?state=cancelled").json()["items"] == []


def test_the_api_documents_its_models(client: AppClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    answers = paths["/v1/sweeps/{sweep}"]["get"]["responses"]
    assert answers["200"]["content"]["application/json"]["schema"]["$ref"].endswith("/SweepView")
    assert "304" in answers
    parameters = [item["name"] for item in paths["/v1/sweeps/{sweep}"]["get"]["parameters"]]
    assert "if-none-match" in parameters
