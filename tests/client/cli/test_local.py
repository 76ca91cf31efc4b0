"""Commands that use this machine's installation: plan, serve and run."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from creditgrid.client import local_service, watch
from creditgrid.client.client import Client
from creditgrid.core.states import State
from creditgrid.core.wire import PlanView, Problem

Run = Callable[..., tuple[int, str, str]]


def test_plan_by_the_service(connected, run: Run, spec: str) -> None:
    kind = {"total": 2, "cached": 0, "shared": 0, "new": 2, "unneeded": 0, "calls": 1}
    plan = {"name": "grid", "experiment": "linesearch", "cells": kind, "tasks": {}, "groups": 1, "misses": []}
    connected.faults.append(Problem(title="x", status=422, detail="refused"))
    assert run("plan", spec)[0] == 2
    assert connected.posts("/v1/plans")
    # The answer of a service is shown as a table or as it came.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Client, "plan", lambda self, spec, code: PlanView.model_validate(plan))
        assert "2 cells, measured in 1 call" in run("plan", spec)[1]
        assert json.loads(run("plan", spec, "-o", "json")[1])["groups"] == 1


def test_plan_without_a_service(run: Run, spec: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "service.py"
    script.write_text(
        'import sys\nprint(\'{"title": "Bad", "status": 422, "detail": "refused here",'
        ' "errors": [{"pointer": "/axes", "detail": "empty"}]}\')\nsys.exit(2)'
    )
    monkeypatch.setattr(local_service, "SERVICE", (sys.executable, str(script)))
    code, out, err = run("plan", spec)
    assert (code, out) == (2, "")
    assert err == "error: refused here\n  /axes: empty\n"


def test_serve_passes_its_options_on(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr("creditgrid.client.cli.local.os.execv", lambda path, arguments: calls.append((path, arguments)))
    for options in (["--port", "1", "--runner=local", "--new-option", "x"], ["--help"], []):
        assert run("serve", *options)[0] == 0
    python = sys.executable
    module = [python, "-P", "-m", "creditgrid.service", "serve"]
    assert calls == [
        (python, [*module, "--port", "1", "--runner=local", "--new-option", "x"]),
        (python, [*module, "--help"]),
        (python, module),
    ]


class FakeLocalService:
    """Instead of a child process: the test's own service."""

    def __init__(self, url: str) -> None:
        self.url, self.arguments, self.stopped = url, (), 0

    def __call__(self, *arguments: str) -> FakeLocalService:
        self.arguments = arguments
        return self

    def __enter__(self) -> FakeLocalService:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stopped += 1


@pytest.fixture
def local(service, monkeypatch: pytest.MonkeyPatch) -> FakeLocalService:
    fake = FakeLocalService(service.url)
    monkeypatch.setattr(local_service, "LocalService", fake)
    return fake


@pytest.mark.parametrize("state", [State.SUCCEEDED, State.FAILED])
def test_run(local: FakeLocalService, service, run: Run, spec: str, state: State) -> None:
    service.on_view = lambda sweep: service.change(sweep, state)
    code, out, err = run("run", spec, "--data-dir", "/data", "--runner", "local")
    assert code == (1 if state is State.FAILED else 0)
    assert local.arguments == ("--data-dir", "/data", "--runner", "local")
    assert local.stopped == 1
    assert "oracle descends" in out
    assert "creditgrid watch" not in err
    assert json.loads(run("run", spec, "-o", "json")[1])["title"] == "Best"


def test_a_failed_run_shows_the_tracebacks_and_not_its_ended_service(
    local: FakeLocalService, service, run: Run, spec: str
) -> None:
    cause = {"cause": "ValueError: no", "kind": "fit", "count": 2, "skipped": 5, "attempt": 1, "host": None}
    service.failures = [{**cause, "traceback": "Tb\n", "key": "k", "command": "creditgrid run-task k"}]
    service.on_view = lambda sweep: service.change(sweep, State.FAILED)
    code, _, err = run("run", spec)
    assert code == 1
    assert err.splitlines()[-4:] == [
        "sweep s1 failed: 1 of 4 cells have no result",
        "  fit: ValueError: no (2 failed)",
        "Tb",
        "  run it here, with a service (creditgrid serve): creditgrid run-task k",
    ]


def test_run_does_not_wait_for_a_service_of_its_own_that_died(
    local: FakeLocalService, service, run: Run, spec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "LONGEST_S", 0.1)
    service.on_view = lambda sweep: service.faults.extend(["drop before"] * 1_000_000)
    code, _, err = run("run", spec)
    service.faults.clear()
    assert code == 3
    assert "lost the connection" in err
    assert local.stopped == 1


def test_ctrl_c_on_run_stops_the_service(
    local: FakeLocalService, run: Run, spec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(watch.EventReader, "wait", interrupt)
    code, _, err = run("run", spec)
    assert code == 130
    assert local.stopped == 1
    assert "run it again to continue" in err
    assert "creditgrid watch" not in err
