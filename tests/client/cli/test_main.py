"""The command line: its errors, its exit codes, and real processes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from creditgrid.client.cli import main as cli
from creditgrid.client.client import Client
from creditgrid.core.wire import Problem

Run = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize(
    "case",
    [
        (b"name: x\nname: y", "line 2, column 1: the key 'name' is given twice"),
        (b"name: \xff", "byte 0xff at offset 6 is not UTF-8"),
        (b"axes: {eta: [.nan]}", "/axes/eta/0: nan is not a finite number"),
        (b"a: &x [*x]", "anchors"),
        (b"", "the file holds nothing"),
    ],
)
@pytest.mark.parametrize("command", ["submit", "plan", "run"])
def test_bad_specs_cost_nothing(connected, run: Run, tmp_path: Path, case: tuple[bytes, str], command: str) -> None:
    text, said = case
    path = tmp_path / "bad.yaml"
    path.write_bytes(text)
    code, out, err = run(command, str(path))
    assert (code, out) == (2, "")
    assert said in err
    assert err.startswith("error: ")
    assert "Traceback" not in err
    assert connected.log == []


def test_a_refusal_of_the_service_shows_its_pointers(connected, run: Run, spec: str, spec_problem: Problem) -> None:
    connected.faults.append(spec_problem)
    assert run("submit", spec) == (2, "", "error: the spec is refused\n  /axes/eta/3: eta: must be finite\n")


def test_no_service_is_3(run: Run, spec: str) -> None:
    code, out, err = run("submit", spec, "--url", "http://127.0.0.1:9")
    assert (code, out) == (3, "")
    assert "http://127.0.0.1:9" in err
    assert "creditgrid serve" in err
    assert len(err.splitlines()) == 1


def test_not_found_is_4(connected, run: Run) -> None:
    for command in ("show", "watch", "logs", "cancel", "pause", "resume", "retry"):
        assert run(command, "none") == (4, "", "error: there is no sweep none\n")
    assert run("extend", "none", "--axis", "eta=1") == (4, "", "error: there is no sweep none\n")
    assert run("run-task", "none") == (4, "", "error: there is no /v1/tasks/none\n")


def test_unauthorised_is_6(connected, run: Run) -> None:
    connected.token = "secret"
    code, _, err = run("ls")
    assert code == 6
    assert "--token" in err
    assert run("ls", "--token", "secret")[0] == 0


def test_usage_is_2(connected, run: Run) -> None:
    assert run("shwo")[0] == 2
    assert run("show")[0] == 2
    assert run("ls", "--limit", "0")[0] == 2
    assert run("ls", "--url", "nonsense")[0] == 2


def test_the_unexpected_is_1_with_a_traceback(connected, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(Client, "sweeps", fail)
    code, out, err = run("ls")
    assert (code, out) == (1, "")
    assert "RuntimeError: a bug" in err


def test_a_real_interrupt_of_a_real_process(service) -> None:
    service.add()
    command = [sys.executable, "-m", "creditgrid.client.cli", "watch", "s1", "--url", service.url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 30
        while not any(path.endswith("/events") for _, path, _, _ in service.log) and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.3)
        process.send_signal(2)
        out, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert out == ""
    assert f"creditgrid watch s1 --url {service.url}" in err
    assert "Traceback" not in err


def test_a_terminal_without_unicode(service) -> None:
    service.add()
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "CREDITGRID_URL": service.url}
    command = [sys.executable, "-m", "creditgrid.client.cli", "show", "s1"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "oracle descends" in done.stdout


def test_a_reader_that_leaves(service) -> None:
    service.add()
    environment = os.environ | {"CREDITGRID_URL": service.url}
    command = [sys.executable, "-m", "creditgrid.client.cli", "show", "s1", "-o", "json"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        err = process.stderr.read().decode()
        process.wait(20)
    assert "Traceback" not in err


def test_help_by_typers_own_runner() -> None:
    result = CliRunner().invoke(cli.app, ["submit", "--help"])
    assert result.exit_code == 0
    assert "--watch" in result.output
