"""A service as a child process; a small script replaces the real one."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest

from creditgrid.client import local_service
from creditgrid.client.errors import BadSetting, InvalidRequest, LocalServiceFailed, PackageMissing
from creditgrid.client.local_service import LocalService, ended_by_signals, plan_locally, require_server

SERVICE = """
import http.server, json, os, pathlib, signal, sys, time

if sys.argv[1] == "plan":
    spec = json.loads(pathlib.Path(sys.argv[2]).read_text())
    print("a log line", file=sys.stderr)
    if spec["name"] == "crash":
        sys.exit("Traceback: boom")
    if spec["name"] == "setting":
        print("creditgrid: data_dir is a file", file=sys.stderr)
        sys.exit(2)
    if spec["name"] == "bad":
        print(json.dumps({"title": "Bad", "status": 422, "detail": "refused " + " ".join(sys.argv[3:])}))
        sys.exit(2)
    kind = dict(total=1, cached=0, shared=0, new=1, unneeded=0, calls=1)
    print(json.dumps(dict(name=spec["name"], experiment="e", cells=kind, tasks={}, groups=1, misses=[])))
    sys.exit()

arguments = dict(zip(sys.argv[2::2], sys.argv[3::2]))
mode = arguments.get("--mode")
print("starting", *sys.argv[1:], flush=True)
if mode == "die":
    sys.exit("no disk left")
ready_after = time.monotonic() + (float("inf") if mode == "never" else 0.3)

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        pathlib.Path(arguments["--data-dir"], "asked").touch()
        ready = time.monotonic() > ready_after
        self.send_response(200 if ready else 503)
        self.end_headers()
        self.wfile.write(b"Ray is starting")
    def log_message(self, *args):
        pass

server = http.server.HTTPServer(("127.0.0.1", 0), Handler)

def stop(*args):
    pathlib.Path(arguments["--data-dir"], "stopped").write_text("in good order")
    os._exit(0)

signal.signal(signal.SIGTERM, signal.SIG_IGN if mode == "stubborn" else stop)
pathlib.Path(arguments["--data-dir"], "pid").write_text(f"{os.getpid()} {os.getsid(0)}")
file = pathlib.Path(arguments["--port-file"])
file.write_text("http://127.0.0.1:1")  # half written
time.sleep(0.2)
file.write_text(f"http://127.0.0.1:{server.server_port}\\n")
server.serve_forever()
"""


@pytest.fixture(autouse=True)
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "service.py"
    path.write_text(SERVICE)
    monkeypatch.setattr(local_service, "SERVICE", (sys.executable, str(path)))
    return path


def is_running(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def test_it_runs_while_the_block_does(tmp_path: Path) -> None:
    with LocalService("--data-dir", str(tmp_path)) as service:
        assert httpx.get(f"{service.url}/readyz").status_code == 200
        pid, session = map(int, (tmp_path / "pid").read_text().split())
        assert session == pid != os.getsid(0)
    assert (tmp_path / "stopped").read_text() == "in good order"
    assert not is_running(pid)


def test_it_is_stopped_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), LocalService("--data-dir", str(tmp_path)):
        raise KeyboardInterrupt
    assert (tmp_path / "stopped").exists()


def test_one_that_does_not_stop_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_service, "STOP_TIMEOUT_S", 0.3)
    with LocalService("--data-dir", str(tmp_path), "--mode", "stubborn"):
        pid = int((tmp_path / "pid").read_text().split()[0])
    assert not is_running(pid)


def test_one_that_stops_is_reported_with_its_log(tmp_path: Path) -> None:
    with (
        pytest.raises(LocalServiceFailed, match=r"exit code 1\)(.|\n)*no disk left"),
        LocalService("--data-dir", str(tmp_path), "--mode", "die"),
    ):
        pass


def test_one_that_never_gets_ready_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def monotonic() -> float:
        """A clock that jumps to the timeout when the service has been asked."""
        return time.monotonic() + (local_service.START_TIMEOUT_S if (tmp_path / "asked").exists() else 0.0)

    monkeypatch.setattr(local_service, "time", SimpleNamespace(monotonic=monotonic, sleep=time.sleep))
    with (
        pytest.raises(LocalServiceFailed, match="not ready after 180 s; /readyz: Ray is starting"),
        LocalService("--data-dir", str(tmp_path), "--mode", "never"),
    ):
        pass
    assert (tmp_path / "stopped").exists()


def test_plans_come_from_this_installation(tmp_path: Path) -> None:
    assert plan_locally({"name": "good"}).cells.new == 1
    with pytest.raises(InvalidRequest, match=f"refused -o json --data-dir {tmp_path}"):
        plan_locally({"name": "bad"}, tmp_path)
    with pytest.raises(LocalServiceFailed, match=r"exit code 1\)(.|\n)*Traceback: boom"):
        plan_locally({"name": "crash"})
    with pytest.raises(BadSetting, match="data_dir is a file"):
        plan_locally({"name": "setting"})


def test_a_light_installation_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    require_server()
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in ("ray", "torch") else find(name))
    for attempt in (require_server, LocalService().__enter__, lambda: plan_locally({"name": "good"})):
        with pytest.raises(PackageMissing, match=r"ray, torch is missing.*pip install 'creditgrid\[server\]'"):
            attempt()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_signals_stop_the_service_too(tmp_path: Path, script: Path, number: signal.Signals) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent(f"""
        import sys, time
        from creditgrid.client import local_service
        local_service.SERVICE = (sys.executable, {str(script)!r})
        with local_service.ended_by_signals(), local_service.LocalService("--data-dir", {str(tmp_path)!r}):
            print("up", flush=True)
            time.sleep(60)
        """)
    )
    process = subprocess.Popen([sys.executable, str(program)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        process.send_signal(number)
        code = process.wait(20)
    assert code == (-number if number == signal.SIGINT else 128 + number)
    assert (tmp_path / "stopped").exists()


def test_signal_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with ended_by_signals():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_spec_is_sent_as_json(tmp_path: Path, script: Path) -> None:
    script.write_text("import pathlib, sys\nprint(pathlib.Path(sys.argv[2]).read_text(), file=sys.stderr)\nsys.exit(3)")
    document = {"name": "ü", "axes": {"eta": [1e-5]}}
    started = time.monotonic()
    with pytest.raises(LocalServiceFailed) as caught:
        plan_locally(document)
    assert json.loads(str(caught.value).splitlines()[-1]) == document
    assert time.monotonic() - started < 30
