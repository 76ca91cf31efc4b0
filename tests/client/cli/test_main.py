"""The command line: what it prints where, and its exit codes."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from creditgrid.client import events, local_service, watch
from creditgrid.client.cli import main as cli
from creditgrid.client.client import Client
from creditgrid.core.states import RESULT, State
from creditgrid.core.wire import PlanView, Problem

Run = Callable[..., tuple[int, str, str]]
SPEC = "name: grid\nexperiment: linesearch\nfixed: {dataset: digits}\naxes: {eta: [1e-5, 1e-3]}\n"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], pauses: list[float]) -> Run:
    """Runs the command line and returns its exit code, standard output and standard error."""

    def call(*arguments: str) -> tuple[int, str, str]:
        code = cli.main(arguments)
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture
def connected(service, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CREDITGRID_URL", service.url)
    return service


@pytest.fixture
def spec(tmp_path: Path) -> str:
    path = tmp_path / "grid.yaml"
    path.write_text(SPEC)
    return str(path)


def test_submit_prints_the_id_alone(connected, run: Run, spec: str) -> None:
    code, out, err = run("submit", spec)
    assert (code, out) == (0, "s1\n")
    assert "submitted grid: 4 cells" in err
    assert "creditgrid watch s1" in err
    ((_, body),) = connected.posts("/v1/sweeps")
    assert json.loads(body)["axes"] == {"eta": [1e-5, 1e-3]}


def test_submit_from_standard_input_as_json(connected, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(SPEC.encode())))
    code, out, _ = run("submit", "-", "-o", "json")
    assert code == 0
    assert json.loads(out)["id"] == "s1"


@pytest.mark.parametrize("state", [State.SUCCEEDED, State.CACHED, State.FAILED, State.CANCELLED])
def test_submit_and_watch(connected, run: Run, spec: str, state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = 0 if state in RESULT else 1
    monkeypatch.setattr(watch, "LONGEST_S", 0.1)
    connected.failures = [
        {
            "cause": "ValueError: no",
            "kind": "fit",
            "count": 2,
            "skipped": 5,
            "traceback": "Tb\n",
            "attempt": 3,
            "host": None,
            "key": "k",
            "command": "creditgrid run-task k",
        }
    ]
    connected.on_view = lambda sweep: connected.change(sweep, state)
    code, out, err = run("submit", "--watch", spec)
    assert code == expected
    assert out == "s1\n"
    assert f"{state}: 4/4 cells" in err
    assert ("fit: ValueError: no (2 failed)" in err) is (expected == 1)
    code, out, err = run("watch", "s1", "-o", "json")
    assert code == expected
    assert json.loads(out)["state"] == state


def test_ctrl_c_on_watch_detaches(connected, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    connected.add()

    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(watch.EventReader, "wait", interrupt)
    code, out, err = run("watch", "s1")
    assert (code, out) == (130, "")
    assert err.endswith("sweep s1 continues; watch it with: creditgrid watch s1\n")


def test_ls(connected, run: Run) -> None:
    for state in (State.RUNNING, State.FAILED, State.SUCCEEDED):
        connected.add(state)
    code, out, _ = run("ls")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines() if line.strip().startswith("s")] == ["s1", "s2", "s3"]
    code, out, err = run("ls", "-o", "json", "--limit", "2")
    assert [view["id"] for view in json.loads(out)] == ["s1", "s2"]
    assert err == ""
    code, out, _ = run("ls", "-o", "json", "--state", "failed")
    assert [view["id"] for view in json.loads(out)] == ["s2"]


def test_show(connected, run: Run) -> None:
    connected.add()
    code, out, _ = run("show", "s1")
    assert code == 0
    assert "a [red]grid[/red]" in out
    assert "-0.25 ± 0.013" in out or "-0.25 ± 0.012" in out
    assert "oracle descends: by -0.25" in out
    code, out, _ = run("show", "s1", "-o", "json")
    document = json.loads(out)
    assert document["sweep"]["id"] == "s1"
    assert document["summary"]["rows"][0]["best_eta"] == 0.01
    assert document["failures"] == []


def test_logs(connected, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "QUIET_S", 0.2)
    connected.add()
    connected.tell("s1", "sweep.created", "[b]created[/b]")
    connected.tell("s1", "call.failed", "fit failed")
    failure = {
        "cause": "E",
        "kind": "fit",
        "count": 1,
        "skipped": 0,
        "traceback": "Traceback: here\n",
        "attempt": 1,
        "host": "h",
        "key": "k",
        "command": "creditgrid run-task k",
    }
    connected.failures = [failure]
    code, out, _ = run("logs", "s1")
    lines = out.splitlines()
    assert code == 0
    assert lines[0].endswith("sweep.created    [b]created[/b]")
    assert lines[1].endswith("call.failed      fit failed")
    assert "Traceback: here" in lines[3:]
    connected.tell("s1", "sweep.finished", "done")
    code, out, _ = run("logs", "s1", "--follow", "-o", "json")
    objects = [json.loads(line) for line in out.splitlines()]
    assert [found["type"] for found in objects] == ["sweep.created", "call.failed", "sweep.finished", "failure"]
    assert objects[-1]["traceback"] == "Traceback: here\n"


def test_sql(connected, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary) -> None:
    code = cli.main(["sql", "select * from results"])
    out = capfdbinary.readouterr().out.decode()
    assert code == 0
    assert [line.split() for line in out.splitlines()][-3:-1] == [["dfa", "0.001", "1"], ["vec", "0.01", "–"]]
    assert cli.main(["sql", "select 1", "-o", "csv"]) == 0
    assert capfdbinary.readouterr().out == b"rows as text/csv"
    target = tmp_path / "rows.parquet"
    assert cli.main(["sql", "select 1", "--file", str(target)]) == 0
    assert target.read_bytes() == b"rows as application/vnd.apache.parquet"
    assert capfdbinary.readouterr().out == b""
    monkeypatch.setattr(sys, "stdin", io.StringIO("select 2"))
    assert cli.main(["sql", "-", "-o", "json"]) == 0
    assert json.loads(connected.posts("/v1/query")[-1][1]) == {"sql": "select 2"}


def test_sql_output_that_fits_nowhere(connected, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("sql", "select 1", "-o", "table", "--file", str(tmp_path / "a.csv"))[0] == 2
    assert run("sql", "select 1", "--file", str(tmp_path / "a.xlsx"))[0] == 2
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    code, _, err = run("sql", "select 1", "-o", "parquet")
    assert code == 2
    assert "not for a terminal" in err
    assert connected.log == []


def test_export_and_artifact(connected, run: Run, tmp_path: Path) -> None:
    connected.add()
    rows, tensors = tmp_path / "rows.csv", tmp_path / "a.safetensors"
    code, out, err = run("export", "s1", "--file", str(rows))
    assert (code, out) == (0, "")
    assert rows.read_bytes() == b"rows as text/csv"
    assert "16 bytes" in err
    assert run("export", "s1", "--file", str(tmp_path / "rows.doc"))[0] == 2
    code, _, err = run("export", "s1", "--file", str(tmp_path / "none" / "rows.csv"))
    assert code == 2
    assert "No such file or directory" in err
    assert json.loads(run("artifact", "abc")[1]) == {"key": "abc", "kind": "train"}
    assert run("artifact", "abc", "--file", str(tensors))[0] == 0
    assert tensors.stat().st_size > 0


def test_plan_by_the_service(connected, run: Run, spec: str) -> None:
    kind = {"total": 2, "cached": 0, "shared": 0, "new": 2, "unneeded": 0, "calls": 1}
    plan = {"name": "grid", "experiment": "linesearch", "cells": kind, "tasks": {}, "groups": 1, "misses": []}
    connected.faults.append(Problem(title="x", status=422, detail="refused"))
    assert run("plan", spec)[0] == 2
    assert connected.posts("/v1/plans")
    # The answer of a service is shown as a table or as it came.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Client, "plan", lambda self, spec: PlanView.model_validate(plan))
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


def test_run_does_not_wait_for_a_service_of_its_own_that_died(
    local: FakeLocalService, service, run: Run, spec: str
) -> None:
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
