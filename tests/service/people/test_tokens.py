"""Named tokens: who is let in, until when, and what is stored."""

from __future__ import annotations

import asyncio
import hashlib
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from people_kit import ADMIN_TOKEN, Lab, bearer, open_lab
from pydantic import SecretStr
from service_fakes import serving
from starlette.types import Message
from structlog.contextvars import merge_contextvars
from structlog.testing import capture_logs
from sweeping import wait_until

from creditgrid.service.api.app import create_app
from creditgrid.service.ledger import tables
from creditgrid.service.people import tokens as module
from creditgrid.service.people.tokens import Tokens
from creditgrid.service.settings import Settings


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with open_lab(tmp_path) as found:
        yield found


def status(lab: Lab, token: str) -> int:
    return lab.ask("GET", "/v1/sweeps", token).status_code


def test_a_token_is_long_random_and_readable(lab: Lab) -> None:
    one, two = lab.token("anna"), lab.token("ben")
    assert one != two
    for token in (one, two):
        assert token.startswith("cg_")
        assert len(token) >= 3 + 43  # 32 bytes in base64
        assert status(lab, token) == 200


def test_the_database_holds_hashes_alone(lab: Lab, tmp_path: Path) -> None:
    token = lab.token("anna")
    assert status(lab, token) == 200
    lab.services.tokens.flush()
    with lab.ledger.read() as connection:
        assert connection.scalars(sa.select(tables.tokens.c.hash)).all() == [hashlib.sha256(token.encode()).hexdigest()]
    dump = "\n".join(sqlite3.connect(tmp_path / "ledger.sqlite").iterdump())
    assert "anna" in dump
    assert token not in dump
    assert token[3:] not in dump
    assert ADMIN_TOKEN not in dump
    assert not any(token.encode() in file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())


def test_a_list_names_all_and_shows_no_secret(lab: Lab) -> None:
    tokens = [lab.token("anna", role="read", expires_s=3600), lab.token("ben", max_open_cells=7, max_priority=2)]
    lab.ask("DELETE", "/v1/tokens/anna")
    assert status(lab, tokens[1]) == 200
    answer = lab.ask("GET", "/v1/tokens")
    assert not any(token in answer.text or token[3:] in answer.text for token in tokens)
    ben, anna = answer.json()["items"]
    assert (anna["name"], anna["role"], anna["last_used_at"]) == ("anna", "read", None)
    assert anna["revoked_at"] is not None
    assert anna["expires_at"] > anna["created_at"]
    assert (ben["name"], ben["role"], ben["max_open_cells"], ben["max_priority"]) == ("ben", "submit", 7, 2)
    assert ben["revoked_at"] is None
    assert ben["expires_at"] is None
    assert ben["last_used_at"] is not None


def test_revocation_takes_effect_at_once(lab: Lab) -> None:
    token = lab.token("anna")
    assert status(lab, token) == 200
    assert lab.ask("DELETE", "/v1/tokens/anna").status_code == 200
    answer = lab.ask("GET", "/v1/sweeps", token)
    assert answer.status_code == 401
    assert (
        answer.json() == lab.ask("GET", "/v1/sweeps", "cg_wrong").json()
    )  # which of the two, a stranger must not know
    assert lab.ask("DELETE", "/v1/tokens/anna").status_code == 404
    assert status(lab, lab.token("anna")) == 200  # the name has a new holder
    assert status(lab, token) == 401


def test_an_expired_token_is_refused_and_its_holder_reads_why(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    token = lab.token("anna", expires_s=3600)
    assert status(lab, token) == 200
    later = time.time() + 3601
    monkeypatch.setattr(module.time, "time", lambda: later)
    answer = lab.ask("GET", "/v1/sweeps", token)
    assert answer.status_code == 401
    assert "'anna' expired at" in answer.json()["detail"]
    stranger = lab.ask("GET", "/v1/sweeps", token[:-1])
    assert "anna" not in stranger.text
    assert "is wrong" in stranger.json()["detail"]
    assert status(lab, lab.token("anna")) == 200  # its name may be used again
    assert status(lab, token) == 401


def test_the_log_says_who_makes_a_request(lab: Lab) -> None:
    anna = lab.token("anna")
    with capture_logs(processors=[merge_contextvars]) as lines:
        sweep = lab.submit(anna).json()["id"]
        lab.ask("GET", "/v1/sweeps", "wrong")
    found = [(line["event"], line.get("actor")) for line in lines if line["event"] in ("request", "sweep submitted")]
    assert found == [("sweep submitted", "anna"), ("request", "anna"), ("request", None)]
    assert sweep in str(lines)
    assert anna[3:] not in str(lines)


def test_a_name_has_one_token(lab: Lab) -> None:
    lab.token("anna")
    for name in ("anna", "admin", "Admin"):
        answer = lab.ask("POST", "/v1/tokens", json={"name": name, "role": "admin"})
        assert answer.status_code == 409
        assert "revoke it first" in answer.json()["detail"]


@pytest.mark.parametrize(
    "request_",
    [
        {"name": "anna"},
        {"name": "anna", "role": "root"},
        {"name": "", "role": "read"},
        {"name": "a b", "role": "read"},
        {"name": "a:b", "role": "read"},
        {"name": "anna\n", "role": "read"},
        {"name": "x" * 65, "role": "read"},
        {"name": "anna", "role": "read", "expires_s": 0},
        {"name": "anna", "role": "read", "expires_s": "90"},
        {"name": "anna", "role": "read", "expires_s": 1e300},
        {"name": "anna", "role": "read", "max_open_cells": -1},
        {"name": "anna", "role": "read", "max_priority": True},
        {"name": "anna", "role": "read", "token": "of my own"},
    ],
)
def test_a_bad_request_makes_no_token(lab: Lab, request_: dict[str, object]) -> None:
    assert lab.ask("POST", "/v1/tokens", json=request_).status_code == 422
    assert lab.ask("GET", "/v1/tokens").json()["items"] == []


def test_the_answer_with_the_secret_is_not_cached(lab: Lab) -> None:
    answer = lab.ask("POST", "/v1/tokens", json={"name": "anna", "role": "read"})
    assert answer.headers["cache-control"] == "no-store"


def test_the_last_use_is_written_apart_from_requests(lab: Lab) -> None:
    token = lab.token("anna")

    def written() -> float | None:
        with lab.ledger.read() as connection:
            return connection.scalar(sa.select(tables.tokens.c.last_used_at))

    before = time.time()
    assert status(lab, token) == 200
    assert written() is None
    lab.services.tokens.flush()
    found = written()
    assert found is not None
    assert found >= before
    lab.services.tokens.flush()  # nothing was used since
    assert written() == found


def test_tokens_hold_after_a_restart_also_without_the_administrators(lab: Lab, tmp_path: Path) -> None:
    anna, gone = lab.token("anna", role="admin"), lab.token("ben")
    lab.ask("DELETE", "/v1/tokens/ben")
    again = Tokens(lab.ledger)
    assert again.find(anna) is not None
    assert again.find(gone) is None
    # The settings name no token now: the ledger's tokens still guard the service.
    with serving(create_app(lab.services, Settings(data_dir=tmp_path, grace_s=0))) as client:
        assert client.get("/v1/sweeps").status_code == 401
        assert client.get("/v1/sweeps", headers=bearer(ADMIN_TOKEN)).status_code == 401
        assert client.get("/v1/tokens", headers=bearer(anna)).status_code == 200
        client.request("DELETE", "/v1/tokens/anna", headers=bearer(anna))
        assert client.get("/v1/sweeps").status_code == 401  # also when the last one has ended


def test_a_service_without_an_administrators_token_makes_no_others(tmp_path: Path) -> None:
    with open_lab(tmp_path) as lab, serving(create_app(lab.services, Settings(data_dir=tmp_path, grace_s=0))) as client:
        answer = client.post("/v1/tokens", json={"name": "anna", "role": "read"})
        assert answer.status_code == 409
        assert "--token-file" in answer.json()["detail"]
        assert client.get("/v1/sweeps").status_code == 200


def test_an_open_event_stream_ends_with_its_token(lab: Lab, tmp_path: Path) -> None:
    anna = lab.token("anna")
    sweep = lab.submit(anna, cells=3).json()["id"]
    # Another app over the same parts: an event loop of its own reads the stream.
    app = create_app(lab.services, Settings(data_dir=tmp_path, token=SecretStr(ADMIN_TOKEN), grace_s=0))
    sent: list[bytes] = []

    async def receive() -> Message:
        await asyncio.Event().wait()  # the client stays
        raise AssertionError

    async def send(message: Message) -> None:
        sent.append(message.get("body", b""))

    headers = [(b"authorization", f"Bearer {anna}".encode()), (b"host", b"localhost")]
    path = f"/v1/sweeps/{sweep}/events"
    scope = {"type": "http", "method": "GET", "path": path, "headers": headers, "query_string": b""}
    stream = threading.Thread(target=lambda: asyncio.run(app(scope, receive, send)), daemon=True)
    stream.start()
    wait_until(lambda: b"sweep.created" in b"".join(sent))
    lab.ask("DELETE", "/v1/tokens/anna")
    lab.ask("POST", f"/v1/sweeps/{sweep}/pause")
    stream.join(20)
    assert not stream.is_alive()
    assert b"sweep.paused" not in b"".join(sent)


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM tokens",
        "SELECT * FROM audit",
        "SELECT * FROM ledger.tokens",
        "SELECT * FROM main.tokens",
        "SELECT * FROM sqlite_scan('ledger.sqlite', 'tokens')",
        "WITH cells AS (SELECT * FROM tokens) SELECT * FROM cells",
        "SELECT hash FROM sweeps",
    ],
)
def test_no_query_reads_tokens_or_the_audit_log(lab: Lab, sql: str) -> None:
    token = lab.token("anna", role="read")
    answer = lab.ask("POST", "/v1/query", token, json={"sql": sql})
    assert answer.status_code == 400, answer.text
    assert hashlib.sha256(token.encode()).hexdigest() not in answer.text
