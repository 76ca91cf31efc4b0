"""One task computed on this machine: whatever it does to its process, and whatever is missing."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save

from creditgrid.client.cli import main as cli
from creditgrid.client.errors import PackageMissing, ParentGone, TaskRefused
from creditgrid.client.local_task import compute_task
from creditgrid.core.fingerprint import digest
from creditgrid.core.task import identity
from creditgrid.core.wire import TaskDocument

pytestmark = pytest.mark.slow
Run = Callable[..., tuple[int, str, str]]

PLUGIN = """
import os, signal, sys, time
from typing import Literal
import numpy as np
from creditgrid.core.experiment import Column, Experiment, Params, Summary
from creditgrid.core.task import Output, Progress, TaskKind

class FateParams(Params):
    fate: str

def run(tasks, inputs, device):
    (task,) = tasks
    print("the task says hello")
    fate = task.params["fate"]
    if fate == "raise":
        raise ValueError("as asked")
    if fate == "leave":
        sys.exit("enough")
    if fate == "exit":
        os._exit(3)
    if fate == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if fate == "segv":
        import ctypes
        ctypes.string_at(0)
    if fate == "progress":
        yield Progress(3, 1000, "as it should")
    if fate == "hang":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        yield Progress(0, 1, f"hangs in {os.getpid()}")
        time.sleep(600)
    number = sum(float(inputs[key]["number"].sum()) for key in sorted(inputs)) + 1 / 3
    yield Output(task.key, rows=[{"number": number}])

def make(tasks, inputs, device):
    for task in tasks:
        if task.params["value"] < 0:
            raise ValueError("a negative value")
        yield Output(task.key, arrays={"number": np.full((1, 2), task.params["value"], np.float32)})

MAKE = TaskKind("fates_make", 1, make)
EXPERIMENT = Experiment(
    name="fates", title="Fates", params=FateParams, columns={"number": Column("float64", "A number.")},
    measure=TaskKind("fates", 1, run), cell=None, summarise=lambda rows: None, kinds=(MAKE,),
)
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package whose tasks do to their process what a parameter says."""
    folder = tmp_path / "plugin"
    (folder / "fates-0.dist-info").mkdir(parents=True)
    (folder / "fates.py").write_text(PLUGIN)
    (folder / "fates-0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: fates\nVersion: 0\n")
    (folder / "fates-0.dist-info" / "entry_points.txt").write_text(
        "[creditgrid.experiments]\nfates = fates:EXPERIMENT\n"
    )
    path = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", str(folder) + (os.pathsep + path if path else ""))


@pytest.fixture
def run(service, plugin: None, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs ``creditgrid run-task`` and returns its exit code, standard output and standard error."""
    monkeypatch.setenv("CREDITGRID_URL", service.url)

    def call(*arguments: str) -> tuple[int, str, str]:
        code = cli.main(["run-task", *arguments])
        out, err = capfd.readouterr()
        return code, out, err

    return call


def put(service, kind: str, params: Mapping[str, Any], version: int = 1, **parents: str) -> str:
    """A task that the service knows; its key."""
    key = digest(identity(kind, version, params, parents))
    service.tasks[key] = TaskDocument(
        key=key, kind=kind, version=version, params=dict(params), parents=parents, group=key, source={}
    )
    return key


def number(value: float) -> bytes:
    return save({"number": np.full((1, 2), value, np.float32)})


def test_a_cell_shows_its_rows(service, run: Run) -> None:
    left, right = put(service, "fates_make", {"value": 1}), put(service, "fates_make", {"value": 2})
    service.artifacts.update({left: number(10), right: number(20)})
    key = put(service, "fates", {"fate": "none"}, left=left, right=right, again=left)
    code, out, err = run(key)
    assert code == 0
    assert [line.split() for line in out.splitlines() if line.strip()][0::2] == [
        ["number", "diverged"],
        ["60.33", "false"],
    ]
    assert "the task says hello" in err
    assert "fates took" in err
    assert "cpu" in err
    code, out, _ = run(key, "-o", "json")
    document = json.loads(out)
    (row,) = document["rows"]
    assert row["number"] == 60 + 1 / 3
    assert (row["cell"], row["fate"], document["error"]) == (key, "none", None)


def test_a_stage_shows_its_tensors_and_keeps_them_if_asked(service, run: Run, tmp_path: Path) -> None:
    key = put(service, "fates_make", {"value": 5})
    kept = tmp_path / "new" / "kept"
    code, out, err = run(key, "--keep", str(kept))
    assert code == 0
    assert ["number", "float32", "1", "×", "2"] in [line.split() for line in out.splitlines()]
    (path,) = (
        Path(line.removeprefix("its artifact: ")) for line in err.splitlines() if line.startswith("its artifact")
    )
    assert path.is_relative_to(kept)
    np.testing.assert_array_equal(load_file(path)["number"], [[5, 5]])
    code, out, err = run(key, "--keep", str(kept))
    assert (code, out) == (2, "")
    assert "the folder is not empty" in err
    assert run(key, "-o", "json", "--keep", str(tmp_path / "other"))[0] == 0


def test_what_it_raises_is_shown(service, run: Run) -> None:
    key = put(service, "fates", {"fate": "raise"})
    code, out, err = run(key)
    assert code == 1
    assert out.startswith("Traceback (most recent call last):\n")
    assert out.endswith("ValueError: as asked\n")
    assert err.splitlines()[-1] == f"fates {key} failed: ValueError: as asked"
    code, out, _ = run(key, "-o", "json")
    assert code == 1
    assert json.loads(out)["error"] == "ValueError: as asked"
    assert "fates.py" in json.loads(out)["traceback"]


@pytest.mark.parametrize(
    ("fate", "said"),
    [
        ("exit", "the task ended its process with exit status 3, without an exception"),
        ("kill", "the task's process was ended by SIGKILL, perhaps by the system because it used too much memory"),
        ("segv", "the task's process was ended by SIGSEGV"),
        ("leave", "SystemExit: the task asked its process to end with status enough"),
    ],
)
def test_a_task_that_ends_its_process(service, run: Run, fate: str, said: str) -> None:
    key = put(service, "fates", {"fate": fate})
    code, out, err = run(key)
    assert code == 1
    assert err.splitlines()[-1] == f"fates {key} failed: {said}"
    assert ("in run" in out) is (fate == "leave")
    if fate == "segv":  # where it was
        assert "string_at" in err


def gone(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"


@pytest.mark.parametrize("number", [2, 15])
def test_ctrl_c_ends_a_task_that_hangs(service, plugin: None, tmp_path: Path, number: int) -> None:
    key = put(service, "fates", {"fate": "hang"})
    command = [sys.executable, "-m", "creditgrid.client.cli", "run-task", key, "--url", service.url]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        line = ""
        while "hangs in" not in line:
            line = process.stderr.readline()
            assert line, "it ended"
        pid = int(line.split()[-1])
        assert not gone(pid)
        process.send_signal(number)
        _, err = process.communicate(timeout=30)
    assert process.returncode == (130 if number == 2 else 143)
    assert "Traceback" not in err
    assert ("stopped" in err) is (number == 2)
    deadline = time.monotonic() + 10
    while not gone(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert gone(pid)
    assert list(tmp_path.glob("creditgrid-*")) == []


def test_a_parent_that_is_gone(service, run: Run, tmp_path: Path) -> None:
    base = put(service, "fates_make", {"value": 4})
    key = put(service, "fates", {"fate": "none"}, base=base)
    service.gone.add(base)
    kept = tmp_path / "kept"
    code, out, err = run(key, "--keep", str(kept))
    assert (code, out) == (4, "")
    line = err.splitlines()[-1]
    assert line.startswith(f"error: fates {key} needs an artifact (base) that is not available: there is no artifact")
    assert line.endswith(f"with --with-parents, or alone: creditgrid run-task {base}")
    code, out, err = run(key, "--with-parents", "--keep", str(kept), "-o", "json")
    assert code == 0, err
    assert json.loads(out)["rows"][0]["number"] == 8 + 1 / 3


def test_a_parent_that_is_damaged_is_not_used(service, run: Run) -> None:
    base = put(service, "fates_make", {"value": 4})
    key = put(service, "fates", {"fate": "none"}, base=base)
    service.artifacts[base] = number(4)
    service.damaged.add(base)
    code, _, err = run(key)
    assert code == 4
    assert "is damaged" in err
    assert json.loads(run(key, "--with-parents", "-o", "json")[1])["rows"][0]["number"] == 8 + 1 / 3


def test_a_parent_that_fails_is_named(service, run: Run) -> None:
    base = put(service, "fates_make", {"value": -1})
    key = put(service, "fates", {"fate": "none"}, base=base)
    service.gone.add(base)
    code, out, err = run(key, "--with-parents")
    assert code == 1
    assert out.endswith("ValueError: a negative value\n")
    assert err.splitlines()[-1] == f"fates_make {base} failed: ValueError: a negative value"


def test_another_version_of_a_kind_is_refused(service, client, plugin: None, tmp_path: Path) -> None:
    key = put(service, "fates_make", {"value": 1}, version=2)
    with pytest.raises(TaskRefused, match=r"of version 2, and this installation computes version 1.*: install what"):
        compute_task(client, key, tmp_path / "folder")


def test_no_device_of_that_kind(service, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    code, out, err = run(put(service, "fates_make", {"value": 1}), "--device", "cuda")
    assert (code, out) == (1, "")
    assert err.splitlines()[-1] == "error: there is no CUDA device on this machine that torch can use"


def test_in_python(service, client, plugin: None, tmp_path: Path) -> None:
    base = put(service, "fates_make", {"value": 1})
    service.gone.add(base)
    key = put(service, "fates", {"fate": "progress"}, base=base)
    with pytest.raises(ParentGone):
        compute_task(client, key, tmp_path / "folder")
    lines: list[str] = []
    found = compute_task(client, key, tmp_path / "folder", with_parents=True, on_progress=lines.append)
    assert lines == ["fates: 3/1,000 as it should"]
    assert found.rows is not None
    assert found.rows.table["number"].to_pylist() == [2 + 1 / 3]
    assert (found.task.key, found.key, found.kind, found.error) == (key, key, "fates", None)


def test_a_light_installation_says_what_to_install(service, client, tmp_path: Path, monkeypatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else find(name))
    with pytest.raises(PackageMissing, match=r"pip install 'creditgrid\[server\]'"):
        compute_task(client, "k", tmp_path)
    assert service.log == []
