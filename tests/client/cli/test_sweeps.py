"""Commands about sweeps: what they print where, and their exit codes."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from creditgrid.client import events, watch
from creditgrid.core.states import RESULT, State

Run = Callable[..., tuple[int, str, str]]


def test_submit_prints_the_id_alone(connected, run: Run, spec: str) -> None:
    code, out, err = run("submit", spec)
    assert (code, out) == (0, "s1\n")
    assert "submitted grid: 4 cells" in err
    assert "creditgrid watch s1" in err
    ((_, body),) = connected.posts("/v1/sweeps")
    assert json.loads(body)["axes"] == {"eta": [1e-5, 1e-3]}


def test_submit_from_standard_input_as_json(connected, run: Run, spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(Path(spec).read_bytes())))
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
    connected.emit("s1", "sweep.created", "[b]created[/b]")
    connected.emit("s1", "call.failed", "fit failed")
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
    connected.emit("s1", "sweep.finished", "done")
    code, out, _ = run("logs", "s1", "--follow", "-o", "json")
    objects = [json.loads(line) for line in out.splitlines()]
    assert [found["type"] for found in objects] == ["sweep.created", "call.failed", "sweep.finished", "failure"]
    assert objects[-1]["traceback"] == "Traceback: here\n"
