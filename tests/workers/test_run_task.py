"""The program that computes one task alone: its messages, the files that it writes, and what it refuses."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
from collections.abc import Callable, Mapping
from multiprocessing.connection import Pipe
from pathlib import Path
from typing import Any

import creditgrid_noop as noop
import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.numpy import load_file, save_file

from creditgrid.core.fingerprint import digest
from creditgrid.core.task import Output, Progress, Task
from creditgrid.workers.run_task import main

Run = Callable[..., tuple[int, list[dict[str, Any]]]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Computes the last of the tasks and returns the exit status and the messages."""

    def compute(*tasks: Task, cpu: float = 1.0, options: tuple[str, ...] = ()) -> tuple[int, list[dict[str, Any]]]:
        documents = [dataclasses.asdict(task) | {"cpu": cpu} for task in tasks]
        (tmp_path / "tasks.json").write_text(json.dumps(documents))
        reader, writer = Pipe(duplex=False)
        status = main([str(tmp_path), str(os.dup(writer.fileno())), *options])
        writer.close()
        messages = []
        with reader, contextlib.suppress(EOFError):
            while True:
                messages.append(json.loads(reader.recv_bytes()))
        return status, messages

    return compute


def cell(**params: Any) -> tuple[Task, list[Task]]:
    measure, below = noop.cell(noop.NoopParams(**params), None)
    return measure, list(below)


def test_a_cell_leaves_its_rows(run: Run, tmp_path: Path) -> None:
    task, _ = cell(x=21, y=0.5)
    status, messages = run(task)
    assert status == 0
    started, finished = messages
    assert started == {"type": "started", "kind": "noop", "key": task.key}
    assert finished["type"] == "finished"
    assert finished["rows"] == str(tmp_path / "rows.arrow")
    with pa.ipc.open_stream((tmp_path / "rows.arrow").read_bytes()) as reader:
        (row,) = reader.read_all().to_pylist()
    assert (row["cell"], row["twice"], row["x"], row["y"], row["diverged"]) == (task.key, 42.0, 21, 0.5, False)


def test_a_stage_leaves_its_artifact(run: Run, tmp_path: Path) -> None:
    _, (base,) = cell(x=1, base="ok")
    status, messages = run(base)
    assert status == 0
    assert messages[-1]["tensors"] == {"one": {"shape": [1], "dtype": "float32"}}
    path = Path(messages[-1]["artifact"])
    assert path.is_relative_to(tmp_path)
    np.testing.assert_array_equal(load_file(path)["one"], [1.0])


def test_inputs_come_from_the_folder_or_from_the_task_before(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Mapping[str, Any]] = []

    def look(tasks: Any, inputs: Any, device: Any) -> Any:
        seen.append(inputs)
        yield Progress(1, 2, "half")
        yield Output(tasks[0].key, rows=[{"twice": float(inputs[base.key]["one"][0])}])

    task, (base,) = cell(x=1, base="ok")
    monkeypatch.setitem(noop.MEASURE.__dict__, "run", look)
    (tmp_path / "inputs").mkdir()
    save_file({"one": np.full(1, 7, np.float32)}, tmp_path / "inputs" / f"{base.key}.safetensors")
    status, messages = run(task)
    assert status == 0
    assert [message["type"] for message in messages] == ["started", "progress", "finished"]
    assert messages[1] == {"type": "progress", "kind": "noop", "done": 1, "total": 2, "note": "half"}
    assert seen[0][base.key]["one"] == 7

    (tmp_path / "inputs" / f"{base.key}.safetensors").unlink()
    status, messages = run(base, task)
    assert status == 0
    assert [(message["type"], message["kind"]) for message in messages if message["type"] != "progress"] == [
        ("started", "noop_base"),
        ("finished", "noop_base"),
        ("started", "noop"),
        ("finished", "noop"),
    ]
    assert seen[1][base.key]["one"] == 1


def test_what_a_task_raises_is_reported_and_ends_the_program(run: Run) -> None:
    task, (base,) = cell(x=1, base="raise")
    status, messages = run(base, task)
    assert status == 1
    assert [message["type"] for message in messages] == ["started", "failed"]
    assert (messages[1]["key"], messages[1]["error"]) == (base.key, "ValueError: the base was asked to raise")
    assert messages[1]["traceback"].rstrip().endswith("ValueError: the base was asked to raise")
    assert "run_base" in messages[1]["traceback"]


def test_a_task_that_exits_has_failed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def leave(tasks: Any, inputs: Any, device: Any) -> Any:
        raise SystemExit(0)
        yield

    monkeypatch.setitem(noop.MEASURE.__dict__, "run", leave)
    status, messages = run(cell(x=1)[0])
    assert status == 1
    assert messages[-1]["error"].startswith("SystemExit")
    assert "in leave" in messages[-1]["traceback"]


def test_what_a_task_prints_is_no_message(
    run: Run, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def chat(tasks: Any, inputs: Any, device: Any) -> Any:
        os.write(1, b'{"type": "finished"}\n')
        yield Output(tasks[0].key, rows=[{"twice": 1.0}])

    monkeypatch.setitem(noop.MEASURE.__dict__, "run", chat)
    status, messages = run(cell(x=1)[0])
    assert status == 0
    assert [message["type"] for message in messages] == ["started", "finished"]
    assert "rows" in messages[-1]
    assert capfd.readouterr().out == '{"type": "finished"}\n'


def test_a_process_that_a_task_starts_does_not_hold_the_connection_open(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    children: list[subprocess.Popen[bytes]] = []

    def start(tasks: Any, inputs: Any, device: Any) -> Any:
        children.append(subprocess.Popen(["sleep", "60"], close_fds=False))
        yield Output(tasks[0].key, rows=[{"twice": 1.0}])

    monkeypatch.setitem(noop.MEASURE.__dict__, "run", start)
    status, messages = run(cell(x=1)[0])
    (child,) = children
    with child:
        assert child.poll() is None
        child.kill()
    assert (status, messages[-1]["type"]) == (0, "finished")


def refusal(run: Run, task: Task, *options: str) -> str:
    status, messages = run(task, options=options)
    assert status == 2
    assert [message["type"] for message in messages] == ["refused"]
    return str(messages[0]["error"])


def test_a_task_that_would_be_another_here_is_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    task, _ = cell(x=1)
    damaged = dataclasses.replace(task, params=dict(task.params) | {"x": 2})
    assert "is not the key of this noop" in refusal(run, damaged)
    newer = dataclasses.replace(task, version=2)
    newer = dataclasses.replace(newer, key=digest(newer.payload()))
    assert "is a task of version 2, and this installation computes version 1" in refusal(run, newer)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "no CUDA device" in refusal(run, task, "--device", "cuda")


def test_an_unknown_kind_fails_with_advice(run: Run) -> None:
    task = Task("strange", 1, {}, {}, digest({"kind": "strange", "version": 1, "params": {}, "parents": {}}), "g")
    status, messages = run(task)
    assert status == 1
    assert "knows no task kind 'strange'" in messages[-1]["error"]


@pytest.mark.parametrize("threads", [1, 2])
def test_torch_uses_as_many_threads_as_in_a_worker(run: Run, monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    def count(tasks: Any, inputs: Any, device: Any) -> Any:
        yield Output(tasks[0].key, rows=[{"twice": float(torch.get_num_threads())}])

    monkeypatch.setitem(noop.MEASURE.__dict__, "run", count)
    status, messages = run(cell(x=1)[0], cpu=float(threads))
    assert status == 0
    with pa.ipc.open_stream(Path(messages[-1]["rows"]).read_bytes()) as reader:
        assert reader.read_all()["twice"].to_pylist() == [threads]
