"""``python -m creditgrid.service`` as a process that serves fakes, without Ray or a runner."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from service_fakes import FakePlans
from typer.testing import CliRunner, Result

from creditgrid.core.wire import PlanView, Problem
from creditgrid.service import services
from creditgrid.service.commands import cli
from creditgrid.service.ledger.ledger import Ledger

TESTS = Path(__file__).resolve().parent.parent
# The services are fakes; everything else is the program itself.
PROGRAM = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from service_fakes import Fakes
from creditgrid.service import services
services.create_services = lambda settings: Fakes(settings.data_dir).services()
from creditgrid.service.commands import cli
cli()
"""
SPEC = "name: n\nexperiment: linesearch\n"
TOKEN = "correct-horse-battery-staple"

Start = Callable[..., "tuple[subprocess.Popen[str], str]"]
Run = Callable[..., Result]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-W", "error", "-c", PROGRAM.format(tests=str(TESTS)), *arguments]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Runs a command in this process, and keeps the process's logging and signals."""
    monkeypatch.setattr(services, "create_planner", lambda settings, code: FakePlans())
    monkeypatch.setattr("creditgrid.service.commands.configure_logging", lambda form: None)
    before = signal.getsignal(signal.SIGTERM)

    def invoke(*arguments: str, text: str | bytes | None = None) -> Result:
        result = CliRunner().invoke(cli, list(arguments), input=text, env={"COLUMNS": "200"})
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    yield invoke
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts services and waits until their URL is written."""
    started: list[subprocess.Popen[str]] = []

    def start_service(
        *arguments: str, data: str = "data", limits: tuple[int, int] | None = None
    ) -> tuple[subprocess.Popen[str], str]:
        port_file = tmp_path / f"url-{len(started)}"
        options = ["--port", "0", "--port-file", str(port_file), "--data-dir", str(tmp_path / data)]
        pipe = subprocess.PIPE
        program = command("serve", *options, *arguments)
        if limits is not None:
            soft, hard = limits
            program = ["bash", "-c", f'ulimit -Sn {soft}; ulimit -Hn {hard}; exec "$@"', "bash", *program]
        process = subprocess.Popen(program, stdout=pipe, stderr=pipe, text=True)
        started.append(process)
        deadline = time.monotonic() + 60
        while not port_file.exists():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return process, port_file.read_text().strip()

    yield start_service
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_serve_and_stop(start: Start, tmp_path: Path, how: signal.Signals) -> None:
    process, url = start()
    assert httpx.get(f"{url}/readyz").json() == {"status": "ready"}
    sweep = httpx.post(f"{url}/v1/sweeps", json={"name": "n", "experiment": "linesearch"}).json()["id"]
    with httpx.stream("GET", f"{url}/v1/sweeps/{sweep}/events", timeout=30) as response:
        lines = response.iter_lines()
        assert next(lines).startswith(":")
        process.send_signal(how)
        list(lines)  # the stream of a running sweep ends normally
    out, err = process.communicate(timeout=20)
    assert process.returncode == 0, err
    (line,) = out.splitlines()
    assert url in line
    assert f"{url}/docs" in line
    assert str(tmp_path / "data") in line
    assert "Traceback" not in err
    assert [json.loads(entry)["path"] for entry in err.splitlines()] == ["/v1/sweeps", f"/v1/sweeps/{sweep}/events"]


def test_a_runner_that_does_not_start(tmp_path: Path) -> None:
    broken = PROGRAM.replace("cli()\n", "FakeScheduler.start = lambda self: 1 / 0\ncli()\n").format(tests=str(TESTS))
    program = broken.replace("import Fakes", "import Fakes, FakeScheduler")
    options = ["serve", "--port", "0", "--data-dir", str(tmp_path / "data"), "--port-file", str(tmp_path / "url")]
    result = subprocess.run([sys.executable, "-c", program, *options], capture_output=True, timeout=60, check=False)
    assert result.returncode == 1
    assert b"ZeroDivisionError" in result.stderr
    assert not (tmp_path / "url").exists()


def test_one_service_a_data_directory(run: Run, start: Start, tmp_path: Path) -> None:
    process, _ = start()
    second = run("serve", "--port", "0", "--data-dir", str(tmp_path / "data"))
    assert second.exit_code == 2
    assert str(process.pid) in second.stderr
    assert "in use" in second.stderr
    start(data="other")
    process.kill()  # a killed service holds no lock
    process.wait()
    start()


@pytest.mark.parametrize(
    ("url", "status", "said"),
    [
        ("postgresql://u:hunter2@127.0.0.1:1/d", 1, "postgresql://u:***@127.0.0.1:1/d cannot be used"),
        ("postgresql//u:hunter2@h", 2, "database_url: "),
        ("mysql://u:hunter2@h/d", 2, "mysql"),
        ("sqlite:////nowhere/ledger.sqlite", 1, "/nowhere/ledger.sqlite cannot be used"),
    ],
)
def test_databases_that_cannot_be_used(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, url: str, status: int, said: str
) -> None:
    monkeypatch.setenv("CREDITGRID_DATABASE_URL", url)
    result = run("serve", "--port", "0", "--data-dir", str(tmp_path / "data"))
    assert result.exit_code == status
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert "hunter2" not in result.output


def test_two_data_directories_on_one_database(monkeypatch: pytest.MonkeyPatch, run: Run, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'ledger.sqlite'}"
    first = Ledger(url, lock=True)
    monkeypatch.setenv("CREDITGRID_DATABASE_URL", url)
    result = run("serve", "--port", "0", "--runner", "local", "--data-dir", str(tmp_path / "data"))
    assert result.exit_code == 2
    assert f"in use by the service with process id {os.getpid()}" in result.stderr
    first.close()


def test_a_damaged_ledger(run: Run, tmp_path: Path) -> None:
    (tmp_path / "ledger.sqlite").write_bytes(b"something else")
    result = run("serve", "--port", "0", "--runner", "local", "--data-dir", str(tmp_path))
    assert result.exit_code == 1
    assert "ledger.sqlite is damaged" in result.stderr
    assert "results folder away together" in result.stderr


def test_a_port_in_use(run: Run, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = run("serve", "--port", port, "--data-dir", str(tmp_path / "data"))
    assert result.exit_code == 2
    assert port in result.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--host", "0.0.0.0"], "token"),
        (["--host", "0.0.0.0", "--token", "short"], "16"),
        (["--token-file", "/nowhere/token"], "/nowhere/token"),
        (["--port", "70000"], "65535"),
        (["--runner", "slurm"], "'ray' or 'local'"),
        (["--data-dir", "/proc/creditgrid"], "/proc/creditgrid"),
        (["--log-format", "xml"], "log_format"),
        (["--wat"], "--wat"),
    ],
)
def test_options_that_are_refused(run: Run, tmp_path: Path, options: list[str], said: str) -> None:
    result = run("serve", "--data-dir", str(tmp_path / "data"), *options)
    assert result.exit_code == 2
    assert said in result.stderr
    assert not (tmp_path / "data").exists()


def test_a_token_file(start: Start, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(TOKEN + "\n")
    process, url = start("--token-file", str(tmp_path / "token"), "--host", "0.0.0.0")
    assert url.startswith("http://127.0.0.1:")
    assert httpx.get(f"{url}/v1/sweeps").status_code == 401
    assert httpx.get(f"{url}/v1/sweeps", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
    process.terminate()
    out, err = process.communicate(timeout=20)
    assert TOKEN not in out + err


def test_other_users_see_nothing(start: Start, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(TOKEN)
    (tmp_path / "token").chmod(0o644)
    (tmp_path / "data").mkdir(mode=0o755)
    process, _ = start("--token-file", str(tmp_path / "token"))
    process.terminate()
    _, err = process.communicate(timeout=20)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "data").rglob("*") if path.is_file()}
    assert modes
    assert set(modes.values()) == {0o600}, modes
    assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "token").stat().st_mode) == 0o600
    assert [json.loads(line)["event"].partition(";")[0] for line in err.splitlines()] == [
        "other users could read the token file",
        "other users could read the data directory",
    ]


def test_half_open_connections_do_not_silence_the_service(start: Start) -> None:
    process, url = start(limits=(256, 256))
    address = httpx.URL(url)
    held = []
    for _ in range(300):
        held.append(socket.create_connection((address.host, address.port or 0), timeout=20))
        with contextlib.suppress(OSError):
            held[-1].sendall(b"GET /v1/sweeps HTTP/1.1\r\nHost: 127.0.0.1\r\nX: ")
    for _ in range(10):
        assert httpx.get(f"{url}/healthz", timeout=20).status_code == 200
        assert httpx.get(f"{url}/v1/sweeps", timeout=20).status_code == 200
    for connection in held:
        connection.close()
    process.terminate()
    _, err = process.communicate(timeout=20)
    assert process.returncode == 0
    assert len(err) < 20_000


# -- plan --


def test_plan(run: Run, tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text(SPEC)
    data = tmp_path / "data"
    result = run("plan", str(tmp_path / "spec.yaml"), "--data-dir", str(data), "-o", "json")
    assert result.exit_code == 0, result.stderr
    assert PlanView.model_validate_json(result.stdout).cells.new == 2
    assert not data.exists()
    assert run("plan", "-", "--data-dir", str(data), text=SPEC).stdout == result.stdout
    assert "train" in run("plan", "-", "--data-dir", str(data), "-o", "text", text=SPEC).stdout


@pytest.mark.parametrize(
    ("text", "pointers"),
    [("experiment: linesearch\n", ["/name"]), ("[", [""]), ("name: missing-data\nexperiment: x\n", [])],
)
def test_a_plan_of_a_bad_spec(run: Run, tmp_path: Path, text: str, pointers: list[str]) -> None:
    result = run("plan", "-", "--data-dir", str(tmp_path / "data"), text=text)
    assert result.exit_code == 2
    problem = Problem.model_validate_json(result.stdout)
    assert problem.status == 422
    assert [error.pointer for error in problem.errors] == pointers


def test_a_plan_of_a_file_that_is_not_there(run: Run, tmp_path: Path) -> None:
    result = run("plan", str(tmp_path / "none.yaml"), "--data-dir", str(tmp_path / "data"))
    assert result.exit_code == 2
    assert "none.yaml" in Problem.model_validate_json(result.stdout).detail


def test_the_help_of_serve_shows_the_defaults(run: Run) -> None:
    shown = run("serve", "--help").stdout
    for default in ("creditgrid-data", "127.0.0.1", "8000", "start one here", "ray", "all", "auto"):
        assert f"Default: {default}." in shown
