"""`creditgrid gc`: what is asked of the service, and what is printed."""

from __future__ import annotations

import json

import httpx
import pytest

from creditgrid.client import client as client_module
from creditgrid.client.cli import main as cli
from creditgrid.client.cli.gc import bytes_in, seconds_in
from creditgrid.client.client import Client
from creditgrid.client.connection import Connection
from creditgrid.client.errors import BadSetting, InvalidRequest
from creditgrid.core.wire import Problem, RetentionRequest, RetentionView

VIEW = RetentionView(
    dry_run=False,
    removed=1234,
    removed_bytes=5_600_000_000,
    kept=56,
    kept_bytes=7_890_000,
    in_use=7,
    leftovers=3,
    leftover_bytes=512,
)


class Service:
    """Answers as scripted and then well."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, RetentionRequest]] = []
        self.script: list[httpx.Response | Exception] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        body = RetentionRequest.model_validate_json(request.read())
        self.asked.append((request.method, request.url.path, body))
        scripted = self.script.pop(0) if self.script else None
        if isinstance(scripted, Exception):
            raise scripted
        view = VIEW.model_copy(update={"dry_run": body.dry_run})
        return scripted or httpx.Response(200, text=view.model_dump_json())


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch, pauses: list[float]) -> Service:
    found = Service()

    def connection(url: str | None, token: str | None, timeout: float, _: object) -> Connection:
        return Connection(url, token, timeout, httpx.MockTransport(found))

    monkeypatch.setattr(client_module, "Connection", connection)
    return found


def asked(service: Service) -> RetentionRequest:
    ((method, path, body),) = service.asked
    assert (method, path) == ("POST", "/v1/gc")
    return body


def test_the_client_asks_and_reads(service: Service) -> None:
    with Client() as client:
        assert client.gc(older_than_s=60, max_bytes=10) == VIEW
    assert asked(service) == RetentionRequest(older_than_s=60, max_bytes=10, dry_run=False)


def test_without_limits_only_leftovers_are_asked_for(service: Service) -> None:
    with Client() as client:
        client.gc()
    assert asked(service) == RetentionRequest()


def test_a_lost_answer_is_asked_for_again(service: Service) -> None:
    service.script = [httpx.ReadError("cut"), httpx.Response(503, json={})]
    with Client() as client:
        assert client.gc(max_bytes=1) == VIEW
    assert [body.max_bytes for _, _, body in service.asked] == [1, 1, 1]


def test_a_refusal_is_an_error(service: Service) -> None:
    problem = Problem(title="Unprocessable Content", status=422, detail="no")
    service.script = [
        httpx.Response(422, text=problem.model_dump_json(), headers={"Content-Type": "application/problem+json"})
    ]
    with Client() as client, pytest.raises(InvalidRequest, match="no"):
        client.gc(max_bytes=1)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], {}),
        (["--older-than", "7d"], {"older_than_s": 604_800}),
        (["--max-size", "20GB", "--dry-run"], {"max_bytes": 20 * 10**9, "dry_run": True}),
        (["--older-than", "1.5h", "--max-size", "0B"], {"older_than_s": 5400, "max_bytes": 0}),
    ],
)
def test_the_command_sends_its_options(
    service: Service, capsys: pytest.CaptureFixture[str], arguments: list[str], expected: dict[str, object]
) -> None:
    assert cli.main(["gc", *arguments]) == 0
    assert asked(service) == RetentionRequest.model_validate(expected)
    printed = " ".join(capsys.readouterr().out.split())
    would = "would be removed" if "--dry-run" in arguments else "removed"
    assert f"artifacts {would} 1,234 5.6 GB" in printed
    assert f"leftovers {would} 3 512 B" in printed
    assert "artifacts kept 56 7.89 MB" in printed
    assert "needed by open sweeps 7" in printed


def test_that_the_rest_does_not_fit_is_reported(service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["gc", "--max-size", "7.89MB"]) == 0
    assert capsys.readouterr().err == ""
    assert cli.main(["gc", "--max-size", "7.88MB"]) == 0
    assert "more than --max-size is kept" in capsys.readouterr().err


def test_json_is_the_view(service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["gc", "-o", "json", "--max-size", "1B"]) == 0
    assert RetentionView.model_validate(json.loads(capsys.readouterr().out)) == VIEW
    assert len(service.asked) == 1


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("90m", 5400), ("12h", 43_200), ("7d", 604_800), ("2W", 1_209_600), ("0 s", 0), ("0.5w", 302_400)],
)
def test_ages(text: str, seconds: float) -> None:
    assert seconds_in(text) == seconds


@pytest.mark.parametrize(
    ("text", "count"),
    [("5B", 5), ("500MB", 5 * 10**8), ("20 gb", 2 * 10**10), ("1.5TB", 15 * 10**11), ("0.5KB", 500), ("2.01KB", 2010)],
)
def test_sizes(text: str, count: int) -> None:
    assert bytes_in(text) == count


@pytest.mark.parametrize(
    "text", ["", "7", "d", "-7d", "7 years", "1e3s", "inf d", "7GB", "٧d", "1:30", "1d12h", "99999999999d"]
)
def test_what_is_no_age(service: Service, capsys: pytest.CaptureFixture[str], text: str) -> None:
    with pytest.raises(BadSetting, match="is not an age: give a number"):
        seconds_in(text)
    assert cli.main(["gc", f"--older-than={text}"]) == 2
    assert "is not an age" in capsys.readouterr().err
    assert service.asked == []


@pytest.mark.parametrize("text", ["", "7", "GB", "-7GB", "7GiB", "7d", "7,5GB", "7PB", "7K"])
def test_what_is_no_size(service: Service, text: str) -> None:
    with pytest.raises(BadSetting, match="is not a size: give a number"):
        bytes_in(text)
    assert cli.main(["gc", f"--max-size={text}"]) == 2
    assert service.asked == []
