"""The audit log: who changed what, and what was refused."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from people_kit import ADMIN_TOKEN, Lab, bearer, open_lab

from creditgrid.service.ledger import tables, transitions
from creditgrid.service.people import audit as module


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with open_lab(tmp_path) as found:
        yield found


def row(found: dict[str, Any]) -> tuple[Any, ...]:
    return found["actor"], found["action"], found["target"], found["outcome"]


def fails(*_: Any, **__: Any) -> None:
    raise sa.exc.OperationalError(None, None, Exception("disk full"))


def test_every_change_has_a_row(tmp_path: Path, url: str) -> None:
    with open_lab(tmp_path, url=url) as lab:
        change_all(lab)


def change_all(lab: Lab) -> None:
    anna, ben = lab.token("anna"), lab.token("ben", role="admin")
    sweep = lab.submit(anna, cells=3).json()["id"]
    lab.ask("POST", f"/v1/sweeps/{sweep}/pause", anna)
    lab.ask("POST", f"/v1/sweeps/{sweep}/pause", anna)  # changes nothing
    lab.ask("POST", f"/v1/sweeps/{sweep}/resume", ben)
    lab.ask("POST", f"/v1/sweeps/{sweep}/extend", anna, json={"axes": {"x": [77]}})
    lab.ask("POST", f"/v1/sweeps/{sweep}/cancel", ben)
    lab.ask("POST", "/v1/gc", ben, json={"dry_run": True})  # changes nothing
    lab.ask("POST", "/v1/gc", ben, json={})
    lab.ask("DELETE", "/v1/tokens/anna", ben)
    assert [row(found) for found in lab.audit()] == [
        ("admin", "token create", "anna", "done"),
        ("admin", "token create", "ben", "done"),
        ("anna", "submit", sweep, "done"),
        ("anna", "pause", sweep, "done"),
        ("ben", "resume", sweep, "done"),
        ("anna", "extend", sweep, "done"),
        ("ben", "cancel", sweep, "done"),
        ("ben", "gc", "", "done"),
        ("ben", "token revoke", "anna", "done"),
    ]


def test_a_row_says_when_by_which_request_and_what(lab: Lab) -> None:
    document = {"name": "night", "experiment": "noop", "axes": {"x": [1, 2]}, "priority": 3}
    answer = lab.client.post("/v1/sweeps", json=document, headers={**bearer(ADMIN_TOKEN), "X-Request-ID": "r-17"})
    (found,) = lab.audit()
    assert found["request"] == "r-17"
    assert found["detail"] == "night: 2 cells of noop, priority 3"
    assert found["at"][:13] == answer.json()["created_at"][:13]


def test_no_row_holds_a_secret(lab: Lab) -> None:
    tokens = [lab.token("anna"), ADMIN_TOKEN]
    lab.ask("POST", "/v1/gc", tokens[0], json={})
    text = str(lab.audit())
    assert not any(token in text or token.removeprefix("cg_") in text for token in tokens)


def test_a_change_that_fails_leaves_no_row(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transitions, "finish_sweep", fails)  # the last step of the transaction
    assert lab.submit(ADMIN_TOKEN).status_code == 503
    assert lab.audit() == []
    assert lab.submit(ADMIN_TOKEN, name=1).status_code == 422
    assert lab.audit() == []


def test_refused_requests_have_rows_too(lab: Lab) -> None:
    anna, rita = lab.token("anna", max_priority=0), lab.token("rita", role="read")
    sweep = lab.submit(ADMIN_TOKEN).json()["id"]
    for _ in range(3):
        lab.ask("POST", f"/v1/sweeps/{sweep}/cancel", anna)
    lab.submit(anna, first=10, priority=9)
    lab.submit(rita, first=10)
    lab.ask("GET", "/v1/audit", rita)  # reads, so it has no row
    lab.ask("GET", f"/v1/sweeps/{sweep}")
    refused = lab.audit()[3:]
    assert [row(found) for found in refused] == [
        ("anna", "cancel", sweep, "refused"),
        ("anna", "submit", "", "refused"),
        ("rita", "submit", "", "refused"),
    ]
    assert refused[0]["detail"].startswith(f"sweep {sweep} belongs to 'admin'")
    assert refused[0]["detail"].endswith("(3 times)")
    assert "above the limit of 'anna'" in refused[1]["detail"]
    assert "needs a token of role submit" in refused[2]["detail"]


def test_refusals_cannot_fill_the_log(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_REFUSED", 5)
    rita = lab.token("rita", role="read")
    for number in range(20):
        lab.ask("POST", f"/v1/sweeps/s{number}/cancel", rita)
    lab.ask("POST", f"/v1/sweeps/{'s' * 5000}/cancel", rita)
    rows = lab.audit()[1:]
    assert len(rows) == 6
    assert rows[-1]["detail"] == "16 more requests were refused"
    assert lab.audit()[1:] == rows  # they are written once


def test_a_refusal_waits_for_no_writer(lab: Lab) -> None:
    """It is noted on the event loop, on which all requests are."""
    rita = lab.token("rita", role="read")
    lab.submit(rita)
    with ThreadPoolExecutor() as pool:
        with lab.ledger.write():
            writing = pool.submit(lab.services.audit.flush)
            assert lab.submit(rita).status_code == 403
            assert lab.ask("GET", "/v1/sweeps", rita).status_code == 200
            assert not writing.done()
        writing.result(20)
    assert len([found for found in lab.audit() if found["outcome"] == "refused"]) == 2


def test_refusals_are_kept_while_the_ledger_cannot_be_written(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    rita = lab.token("rita", role="read")
    lab.submit(rita)
    with monkeypatch.context() as patch:
        patch.setattr(module, "record", fails)
        assert lab.ask("GET", "/v1/audit").status_code == 503
        lab.submit(rita)
    assert lab.audit()[-1]["detail"].endswith("(2 times)")


def test_refusals_are_written_when_the_service_stops(lab: Lab) -> None:
    rita = lab.token("rita", role="read")
    lab.submit(rita)
    lab.services.maintenance.stop()
    with lab.ledger.read() as connection:
        assert connection.scalars(sa.select(tables.audit.c.outcome)).all() == ["done", "refused"]


def test_pages_and_filters(lab: Lab) -> None:
    for name in ("one", "two", "three"):
        lab.token(name)
    lab.ask("DELETE", "/v1/tokens/two")
    first = lab.ask("GET", "/v1/audit?limit=3").json()
    assert [found["action"] for found in first["items"]] == ["token revoke", "token create", "token create"]
    rest = lab.ask("GET", "/v1/audit", params={"limit": "3", "cursor": first["next"]}).json()
    assert [found["target"] for found in rest["items"]] == ["one"]
    assert rest["next"] is None
    assert [found["action"] for found in lab.audit(target="two")] == ["token create", "token revoke"]
    assert lab.audit(actor="nobody") == []
    assert len(lab.audit(actor="admin")) == 4


def test_no_route_changes_the_log(lab: Lab) -> None:
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        assert lab.ask(method, "/v1/audit").status_code == 405
        assert lab.ask(method, "/v1/audit/1").status_code == 404
