"""Tokens and the audit log on the command line, against a service over a socket."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from people_kit import ADMIN_TOKEN, lab_on_a_socket
from structlog.testing import capture_logs

from creditgrid.client.client import Client
from creditgrid.client.errors import Conflict, Forbidden, InvalidRequest, NotFound, Unauthorised

Run = Callable[..., tuple[int, str, str]]
SPEC = {"name": "n", "experiment": "noop", "axes": {"x": [1, 2]}}


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with capture_logs(), lab_on_a_socket(tmp_path / "lab") as found:  # the service logs to the same output
        monkeypatch.setenv("CREDITGRID_URL", found)
        monkeypatch.setenv("CREDITGRID_TOKEN", ADMIN_TOKEN)
        yield found


def create(run: Run, *options: str) -> str:
    code, out, err = run("token", "create", *options)
    assert code == 0, err
    assert "shown only now" in err
    assert len(out.splitlines()) == 1
    return out.strip()


def test_a_token_is_created_listed_used_and_revoked(run: Run, url: str, tmp_path: Path) -> None:
    token = create(run, "--name", "anna", "--role", "submit", "--expires", "90d", "--max-open-cells", "5")
    spec = tmp_path / "spec.json"
    spec.write_text(json.dumps(SPEC))
    code, sweep, _ = run("submit", str(spec), "--token", token)
    assert code == 0
    code, out, _ = run("token", "ls")
    assert code == 0
    assert token not in out
    (line,) = [line for line in out.splitlines() if "anna" in line]
    assert line.split()[:2] == ["anna", "submit"]
    assert "≤ 5" in line
    (listed,) = json.loads(run("token", "ls", "-o", "json")[1])
    assert listed["last_used_at"] is not None
    assert listed["expires_at"][:10] > listed["created_at"][:10]
    assert run("token", "revoke", "anna")[0] == 0
    assert run("ls", "--token", token)[0] == 6
    assert run("token", "revoke", "anna")[0] == 4
    code, out, _ = run("audit")
    assert code == 0
    assert [word in out for word in ("token create", "submit", "token revoke", "done")] == [True] * 4
    assert token not in out
    assert sweep.strip() in out
    (submitted,) = json.loads(run("audit", "-o", "json", "--actor", "anna")[1])
    assert (submitted["action"], submitted["target"]) == ("submit", sweep.strip())


def test_owners_are_shown_and_select(run: Run, url: str) -> None:
    with Client(url) as admin, Client(url, create(run, "--name", "anna", "--role", "submit")) as anna:
        hers = anna.submit(SPEC)
        others = admin.submit(SPEC | {"axes": {"x": [3]}})
        assert (hers.view.owner, others.view.owner) == ("anna", "admin")
        assert [sweep.id for sweep in admin.sweeps(owner="anna")] == [hers.id]
        with pytest.raises(Forbidden, match="belongs to 'admin'"):
            anna.sweep(others.id).cancel()
        assert anna.query("SELECT id, owner FROM sweeps ORDER BY id").table.to_pylist() == [
            {"id": sweep.id, "owner": sweep.view.owner} for sweep in sorted((hers, others), key=lambda sweep: sweep.id)
        ]
    code, out, _ = run("ls", "--owner", "anna")
    assert code == 0
    assert hers.id in out
    assert others.id not in out
    assert "owner" in out
    assert "anna" in run("show", hers.id)[1]


def test_what_a_token_does_not_allow_exits_with_6_and_says_which_role(run: Run, url: str) -> None:
    token = create(run, "--name", "rita", "--role", "read", "--expires", "never")
    code, _, err = run("gc", "--token", token)
    assert code == 6
    assert "needs a token of role admin; the token of 'rita' has role read" in err
    assert "--token" not in err
    assert run("token", "ls", "--token", token)[0] == 6


@pytest.mark.parametrize("options", [("--expires", "soon"), ("--expires", "-1d"), ("--role", "root"), ()])
def test_bad_options(run: Run, options: tuple[str, ...]) -> None:
    required = ("--name", "anna", *(() if "--role" in options or not options else ("--role", "read")))
    assert run("token", "create", *required, *options)[0] == 2


def test_errors_of_the_client(url: str) -> None:
    with Client(url) as client:
        client.create_token("anna", "read")
        with pytest.raises(Conflict):
            client.create_token("anna", "read")
        with pytest.raises(InvalidRequest):
            client.create_token("anna/ben", "read")
        with pytest.raises(NotFound):
            client.revoke_token("ben")
    with Client(url, "wrong") as stranger, pytest.raises(Unauthorised) as refused:
        stranger.tokens()
    assert not isinstance(refused.value, Forbidden)
