"""HTTP with a service that drops connections, is away, or is no CreditGrid service."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import httpx
import pytest

from creditgrid.client import connection
from creditgrid.client.client import Client
from creditgrid.client.errors import (
    ApiError,
    BadSetting,
    CannotConnect,
    Conflict,
    Forbidden,
    InvalidRequest,
    NotFound,
    Unauthorised,
    UnexpectedAnswer,
)
from creditgrid.core.wire import Problem

SPEC = {"name": "x", "experiment": "linesearch"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("fault", ["drop after", "drop before", "cut", "html 502"])
def test_a_lost_answer_makes_one_sweep(service, client, pauses, fault: str) -> None:
    service.faults.extend([fault, fault])
    sweep = client.submit(SPEC)
    posts = service.posts("/v1/sweeps")
    assert len(posts) == 3
    assert len({headers["Idempotency-Key"] for headers, _ in posts}) == 1
    assert {body for _, body in posts} == {json.dumps(SPEC, separators=(",", ":")).encode()}
    assert list(service.sweeps) == [sweep.id]
    assert len(pauses) == 2


def test_two_submissions_have_two_keys(service, client) -> None:
    assert client.submit(SPEC).id != client.submit(SPEC).id
    assert len(service.keys) == 2


def test_pauses_grow_with_jitter_and_end(service, client, pauses, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection.random, "uniform", lambda low, high: high)
    unavailable = Problem(title="Unavailable", status=503, detail="Ray is starting")
    service.faults.extend([unavailable] * 50)
    with pytest.raises(ApiError, match="Ray is starting") as caught:
        client.experiments()
    assert caught.value.problem == unavailable
    assert caught.value.tries == connection.TRIES == len(pauses) + 1
    assert pauses == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 8.0, 8.0]


def test_no_service(pauses) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with Client(url) as client, pytest.raises(CannotConnect) as caught:
        client.submit(SPEC)
    assert url in str(caught.value)
    assert "creditgrid serve" in str(caught.value)
    assert "--url" in str(caught.value)
    assert len(pauses) == connection.FIRST_TRIES - 1


def test_a_service_that_answered_once_is_waited_for(service, client, pauses) -> None:
    with pytest.raises(NotFound):
        client.sweep("none")
    service.faults.extend(["drop before"] * 50)
    with pytest.raises(CannotConnect, match="lost the connection"):
        client.sweep("none")
    assert len(pauses) == connection.TRIES - 1


def test_a_try_that_takes_long_is_not_repeated(pauses, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, connection.PATIENCE_S + 1])
    monkeypatch.setattr(connection, "monotonic", lambda: next(clock))

    def time_out(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadTimeout("timed out")

    with Client(transport=httpx.MockTransport(time_out)) as client, pytest.raises(CannotConnect, match="timed out"):
        client.query("select 1")
    assert pauses == []


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, InvalidRequest),
        (401, Unauthorised),
        (403, Forbidden),
        (404, NotFound),
        (409, Conflict),
        (413, InvalidRequest),
        (415, InvalidRequest),
        (422, InvalidRequest),
        (429, ApiError),
        (500, ApiError),
    ],
)
def test_problems_become_typed_errors_at_once(service, client, pauses, status: int, kind: type[ApiError]) -> None:
    service.faults.append(Problem(title="No", status=status, detail="because of this"))
    with pytest.raises(ApiError, match="because of this") as caught:
        client.experiments()
    assert type(caught.value) is kind
    assert caught.value.problem.status == status
    assert pauses == []
    assert len(service.log) == 1


def test_faults_of_a_spec_have_their_pointers(service, client, spec_problem: Problem) -> None:
    service.faults.append(spec_problem)
    with pytest.raises(InvalidRequest) as caught:
        client.plan(SPEC)
    assert str(caught.value) == "the spec is refused\n  /axes/eta/3: eta: must be finite"
    assert caught.value.problem.errors[0].pointer == "/axes/eta/3"


def test_other_servers_are_recognised() -> None:
    answers = {
        "/v1/experiments": httpx.Response(404, text="<html>  nothing\nhere</html>"),
        "/v1/experiments/html": httpx.Response(200, text="<html>"),
        "/v1/experiments/shape": httpx.Response(200, json={"name": 3}),
        "/v1/experiments/moved": httpx.Response(308, headers={"Location": "https://else.where/"}),
        "/v1/artifacts/a/record": httpx.Response(200, text="<html>"),
        "/v1/artifacts/a": httpx.Response(200, content=b"\x08not safetensors"),
        "/v1/query": httpx.Response(200, content=b"not arrow"),
    }
    transport = httpx.MockTransport(lambda request: answers[request.url.path])
    with Client("http://example.test", transport=transport) as client:
        with pytest.raises(
            NotFound, match=r"404 Not Found \(<html> nothing here</html>\): is it a CreditGrid service\?"
        ):
            client.experiments()
        with pytest.raises(UnexpectedAnswer, match="is no ExperimentView"):
            client.experiment("html")
        with pytest.raises(UnexpectedAnswer, match="is no ExperimentView"):
            client.experiment("shape")
        with pytest.raises(UnexpectedAnswer, match=r"redirects to https://else\.where/"):
            client.experiment("moved")
        with pytest.raises(UnexpectedAnswer, match="not JSON"):
            client.artifact_record("a")
        with pytest.raises(UnexpectedAnswer, match="not a safetensors file"):
            client.artifact("a")
        with pytest.raises(UnexpectedAnswer, match="not an Arrow stream"):
            client.query("select 1")


def test_the_token_is_sent(service, monkeypatch: pytest.MonkeyPatch) -> None:
    service.token = "secret"
    service.add()
    with Client(service.url) as client, pytest.raises(Unauthorised):
        client.sweep("s1")
    with Client(service.url, token=" secret\n") as client:
        assert client.sweep("s1").id == "s1"
    monkeypatch.setenv("CREDITGRID_TOKEN", "secret")
    monkeypatch.setenv("CREDITGRID_URL", service.url + "/")
    with Client() as client:
        assert client.url == service.url
        assert client.sweep("s1").id == "s1"


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host", "http://", "http://a:b", "not a url"])
def test_bad_urls(url: str) -> None:
    with pytest.raises(BadSetting, match="URL"):
        Client(url)


def test_bad_tokens() -> None:
    with pytest.raises(BadSetting, match="token"):
        Client(token="se\ncret")
    with pytest.raises(BadSetting, match="token"):
        Client(token="sécret")


def test_a_proxy_of_the_environment_is_not_asked_for_loopback(service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("NO_PROXY", "")
    service.add()
    with Client(service.url) as client:
        assert client.sweep("s1").id == "s1"


def test_a_download_is_whole_or_not_there(service, client, pauses, tmp_path: Path) -> None:
    service.add()
    target = tmp_path / "rows.parquet"
    service.faults.extend(["cut", "cut"])
    whole = client.sweep("s1").export(target)  # the first fault is the sweep's own view
    assert whole.read_bytes() == b"rows as application/vnd.apache.parquet"
    sweep = client.sweep("s1")
    service.faults.extend(["cut"] * 50)
    target.write_bytes(b"old")
    with pytest.raises(CannotConnect):
        sweep.export(target)
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_ids_cannot_leave_their_path(service, client) -> None:
    with pytest.raises(NotFound):
        client.sweep("../experiments?x=1#y")
    assert service.log[-1][1] == "/v1/sweeps/..%2Fexperiments%3Fx%3D1%23y"
    with pytest.raises(BadSetting):
        client.sweep("")
