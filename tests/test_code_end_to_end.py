"""Code of one's own from end to end: a real service, HTTP and Ray compute a line search over a method of a file."""

from __future__ import annotations

import json
import linecache
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from test_end_to_end import Service

from creditgrid.client import Client, InvalidRequest
from creditgrid.client.cli.main import main
from creditgrid.client.local_task import compute_task
from creditgrid.core.errors import CodeError
from creditgrid.core.states import State

pytestmark = pytest.mark.slow

METHOD = '''"""Least squares from the hidden state and the output error to the terminal gradient."""

import torch
from pydantic import Field

from creditgrid.core.units.method import Method


class Linear(Method):
    """A linear map of the hidden state and the error, fitted in closed form."""

    name = "linear"
    ridge: float = Field(1e-3, ge=0, alias="linear_ridge", description="Weight λ of the ridge, dimensionless.")

    def fit(self, fitting):
        gram = cross = 0
        for forward in fitting.batches(1):
            known = torch.cat([forward.hiddens[-1], forward.error], -1)
            gram = gram + known.T @ known
            cross = cross + known.T @ forward.terminal_gradient
        identity = torch.eye(len(gram), device=gram.device)
        return {"map": torch.linalg.solve(gram + self.ridge * identity, cross)}

    def credit(self, forward, fitted):
        error = forward.error.expand(len(forward.states), *forward.error.shape)
        return torch.cat([forward.states, error], -1) @ fitted["map"]
'''
RAISE = """        if len(forward.y) > 60:
            raise ValueError("too many images")
"""
BROKEN = METHOD.replace('"linear"', '"broken"').replace("linear_ridge", "broken_ridge")
BROKEN = BROKEN.replace("        error = forward", f"{RAISE}        error = forward")
WAIT = """        import pathlib, time
        while pathlib.Path("GATE").exists():
            time.sleep(0.05)
"""


def spec(*methods: str, **fixed: Any) -> dict[str, Any]:
    small = {"dataset": "digits", "num_blocks": 2, "d_hidden": 16, "batch_size": 64, "train_epochs": 1}
    return {
        "name": "mine",
        "experiment": "linesearch",
        "fixed": {**small, **fixed},
        "axes": {"method": list(methods), "eta": [1e-3, 1e-2]},
    }


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    running = Service(tmp_path_factory.mktemp("service"), "--allow-code")
    running.start()
    yield running
    assert running.stop() == 0


@pytest.fixture
def client(service: Service) -> Iterator[Client]:
    with Client(service.url) as found:
        yield found


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("code") / "my_method.py"
    path.write_text(METHOD)
    return path


def test_a_method_of_a_file_is_compared_with_shipped_ones(client: Client, file: Path, tmp_path: Path) -> None:
    plan = client.plan(spec("dfa", "linear"), code=file)
    assert (plan.cells.new, plan.tasks["fit"].new, plan.tasks["code"].cached) == (4, 1, 1)
    sweep = client.submit(spec("dfa", "linear"), code=file).wait(timeout=200)
    assert sweep.state == State.SUCCEEDED
    rows = sweep.results().table.to_pylist()
    assert [row["linear_ridge"] for row in rows] == [None, None, 1e-3, 1e-3]
    assert all(row["delta_loss_same"] is not None for row in rows)
    assert {line["method"] for line in sweep.summary().rows} == {"dfa", "linear"}
    # It is shown, it is an ancestor of what it computed, and it can be downloaded.
    code = sweep.view.code
    assert code is not None
    assert (code.file, code.units) == ("my_method.py", ["linear"])
    cells = list(sweep.cells())
    assert ["code" in cell.parents for cell in cells] == [False, False, True, True]
    assert cells[2].parents["code"] == code.key
    assert client.artifact(code.key)["my_method.py"].tobytes() == METHOD.encode()
    (written,) = client.download_code(code.sha256, tmp_path / "back")
    assert written.read_bytes() == METHOD.encode()
    assert client.query("SELECT count(*) AS n FROM results WHERE method = 'linear'").to_pylist() == [{"n": 2}]


def test_equal_code_is_cached_and_changed_code_is_another_method(client: Client, file: Path, tmp_path: Path) -> None:
    first = client.submit(spec("dfa", "linear"), code=file).wait(timeout=200)
    again = client.submit(spec("dfa", "linear"), code=str(file))
    assert again.state == State.CACHED
    changed = tmp_path / "my_method.py"
    changed.write_text(METHOD.replace("1e-3, ge", "1e-2, ge"))
    other = client.submit(spec("dfa", "linear"), code=changed).wait(timeout=200)
    assert other.view.counts == {State.CACHED: 2, State.SUCCEEDED: 2}
    one, two = [[cell.key for cell in sweep.cells()] for sweep in (first, other)]
    assert (one[:2] == two[:2], set(one[2:]) & set(two[2:])) == (True, set())
    assert {row["linear_ridge"] for row in other.results().table.to_pylist()} == {None, 1e-2}


def test_a_sweep_with_code_is_extended_and_its_code_is_never_removed(client: Client, file: Path) -> None:
    sweep = client.submit(spec("linear", seed=9), code=file).wait(timeout=200)
    removed = client.gc(max_bytes=0)
    assert removed.removed > 0
    assert sweep.view.code is not None
    assert client.artifact(sweep.view.code.key)["my_method.py"].tobytes() == METHOD.encode()
    sweep.extend(axes={"eta": [3e-2], "method": ["dfa"]})  # the fit is computed again
    sweep.wait(timeout=200)
    assert sweep.view.counts == {State.SUCCEEDED: 6}
    rows = sweep.results().table.to_pylist()
    assert sorted((row["method"], row["eta"]) for row in rows) == [
        (method, eta) for method in ("dfa", "linear") for eta in (1e-3, 1e-2, 3e-2)
    ]


def test_a_method_that_fails_fails_its_own_cells_with_its_line(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(BROKEN)
    sweep = client.submit(spec("dfa", "broken"), code=path).wait(timeout=200, raise_on_failure=False)
    assert sweep.view.counts.get(State.FAILED) == 2
    assert [cell.state in (State.SUCCEEDED, State.CACHED) for cell in sweep.cells()] == [True, True, False, False]
    (failure,) = sweep.failures()
    line = 1 + BROKEN.splitlines().index('            raise ValueError("too many images")')
    assert failure.cause.startswith(f"mine.py:{line} in credit: ValueError: too many images")
    assert 'raise ValueError("too many images")' in failure.traceback
    sweep.retry()
    assert sweep.wait(timeout=200, raise_on_failure=False).view.counts.get(State.FAILED) == 2
    with pytest.raises(Exception, match="--allow-code"):
        compute_task(client, failure.key, tmp_path / "refused")
    run = compute_task(client, failure.key, tmp_path / "run", allow_code=True)
    assert run.error is not None
    assert run.error.startswith(f"mine.py:{line} in credit: ValueError")


def test_code_that_cannot_be_used_costs_nothing(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("import no_such_package\n")
    with pytest.raises(InvalidRequest, match=r"mine\.py:1: the package 'no_such_package' is not installed here"):
        client.submit(spec("linear"), code=path)
    with pytest.raises(CodeError, match="No such file or directory: give a Python file"):
        client.submit(spec("linear"), code=tmp_path / "none.py")
    with pytest.raises(InvalidRequest, match="/code"):
        client.submit({**spec("linear"), "code": "0" * 64})


def test_the_command_line_takes_and_gives_code(
    service: Service, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = tmp_path / "spec.json"
    document.write_text(json.dumps(spec("dfa", "linear", seed=8)))

    def run(*arguments: str) -> str:
        assert main(list(arguments)) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    # Without a service: the code is that of the person who plans.
    plan = json.loads(
        run("plan", str(document), "--code", str(file), "--data-dir", str(tmp_path / "none"), "-o", "json")
    )
    assert (plan["cells"]["new"], plan["tasks"]["code"]["new"]) == (4, 0)
    url = ("--url", service.url)
    plan = json.loads(run("plan", str(document), "--code", str(file), "-o", "json", *url))
    assert plan["tasks"]["fit"]["new"] == 1
    sweep = run("submit", str(document), "--code", str(file), "--watch", *url).split()[0]
    with Client(service.url) as client:
        code = client.sweep(sweep).view.code
        assert code is not None
        assert "linear_ridge" in client.experiment("linesearch", code.sha256).parameters["properties"]
    assert f"my_method.py: linear ({code.sha256})" in run("show", sweep, *url)
    assert "linear: A linear map of the hidden state" in run("code", code.sha256, *url)
    assert run("code", code.sha256, "--folder", str(tmp_path / "back"), *url).split() == [
        str(tmp_path / "back" / "my_method.py")
    ]
    assert (tmp_path / "back" / "my_method.py").read_text() == METHOD


def test_a_run_without_a_service_takes_code(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = tmp_path / "spec.json"
    document.write_text(json.dumps(spec("linear", seed=8)))
    options = ["--data-dir", str(tmp_path / "data"), "--runner", "local", "-o", "json"]
    assert main(["run", str(document), "--code", str(file), *options]) == 0
    assert [row["method"] for row in json.loads(capsys.readouterr().out)["rows"]] == ["linear"]


def test_a_class_of_a_notebook_is_submitted(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", notebook)
    cell, name = METHOD.replace("linear", "noted"), "/tmp/ipykernel_1/1.py"
    monkeypatch.setitem(linecache.cache, name, (len(cell), None, cell.splitlines(keepends=True), name))
    exec(compile(cell, name, "exec"), notebook.__dict__)
    sweep = client.submit(spec("noted"), code=notebook.Linear).wait(timeout=200)
    assert sweep.state == State.SUCCEEDED
    assert sweep.view.code is not None
    assert (sweep.view.code.file, sweep.view.code.units) == ("notebook.py", ["noted"])


def test_a_sweep_with_code_survives_a_killed_worker_and_a_killed_service(
    service: Service, file: Path, tmp_path: Path
) -> None:
    with Client(service.url) as client:
        slow = tmp_path / "slow.py"
        gate = tmp_path / "gate"
        waits = WAIT.replace("GATE", str(gate))
        slow.write_text(METHOD.replace("        gram = cross", f"{waits}        gram = cross", 1))
        client.send_code(slow)  # its fit is tried here
        gate.touch()
        sweep = client.submit(spec("linear", seed=7), code=slow)
        _await(lambda: service.workers("fit"))
        for pid in service.workers("fit"):
            os.kill(pid, signal.SIGKILL)
        _await(lambda: client.sweep(sweep.id).view.active or client.sweep(sweep.id).state.finished)
    service.kill()
    service.start()
    gate.unlink()
    with Client(service.url) as client:
        found = client.sweep(sweep.id).wait(timeout=200)
        assert found.state == State.SUCCEEDED
        assert client.submit(spec("linear", seed=7), code=slow).state == State.CACHED
        assert client.code(found.view.code.sha256).units[0].name == "linear"


def _await(done: Any) -> None:
    deadline = time.monotonic() + 120
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.1)
