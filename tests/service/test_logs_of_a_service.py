"""Logs end to end: a real service and real Ray, tasks that print, fail and are killed, and what users see of it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from service_process import ServiceProcess

from creditgrid.client import Client
from creditgrid.client.cli import main as cli
from creditgrid.core.states import State

pytestmark = pytest.mark.slow
PLUGIN = Path(__file__).resolve().parents[1] / "plugin_output"


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(PLUGIN), os.environ.get("PYTHONPATH")])))
    with tempfile.TemporaryDirectory(prefix="cg") as folder:  # a short path: Ray's sockets are below it
        service = ServiceProcess(Path(folder) / "s", "--cpus", "1")
        try:
            service.start()
            yield service.url
        finally:
            service.terminate()
            service.wait()
            service.end_all()


def test_what_tasks_print_is_shown_while_they_run_and_when_they_have_failed(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CREDITGRID_URL", url)
    spec = {
        "name": "prints",
        "experiment": "output",
        "axes": {"behaviour": ["slow", "text", "raise", "kill"]},
        "fixed": {"amount": 30},
        "retry": {"max": 1, "backoff_s": 0.1},
    }
    with Client(url) as client:
        sweep = client.submit(spec)
        keys = {cell.params["behaviour"]: cell.key for cell in sweep.cells()}
        pieces = list(client.follow_logs(keys["slow"]))  # from before it starts to its end
        lines = "".join(pieces).splitlines()
        assert lines[1:] == [f"line {number}" for number in range(30)]
        assert len(pieces) > 1
        sweep.wait(raise_on_failure=False)
        assert sweep.view.counts == {State.SUCCEEDED: 2, State.FAILED: 2}
        killed, raised = sorted(sweep.failures(), key=lambda failure: failure.cause.startswith("ValueError"))
        assert [line for line in killed.log.splitlines() if "===" not in line] == ["last words"] * 2
        assert "attempt 2 on" in killed.log
        assert raised.log.endswith("before the error\n")
        assert "to stdout\nto stderr\n" in client.logs(keys["text"])
    assert cli.main(["logs", sweep.id]) == 0
    out = capsys.readouterr().out
    assert f"output {keys['text'][:12]} | to stdout" in out
    assert "asked to raise" in out
    assert "  | before the error" in out
    assert cli.main(["logs", sweep.id, "--task", keys["kill"]]) == 0
    assert capsys.readouterr().out.count("last words") == 2
