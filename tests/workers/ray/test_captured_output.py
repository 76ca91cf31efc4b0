"""What a process prints during a call is in the call's log, whoever prints it and however the process ends.

Each test has a process of its own, as a Ray worker is one; the last tests use real Ray.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import creditgrid_output as plugin
import pytest
from runner_kit import Kit

from creditgrid.core.task import Task
from creditgrid.workers.artifacts import ArtifactStore
from creditgrid.workers.call_log import BOUND, call_logs, log_path
from creditgrid.workers.log_text import read_log
from creditgrid.workers.ray.runner import RayRunner
from creditgrid.workers.runner import Finished

PLUGIN = Path(__file__).resolve().parents[2] / "plugin_output"

PROGRAM = """
import sys, os, time
from pathlib import Path
import creditgrid_output as plugin
from creditgrid.workers.ray.captured_output import process_output
root, calls = Path(sys.argv[1]), [call.split(":") for call in sys.argv[2:]]
for number, (behaviour, amount) in enumerate(calls):
    with process_output().captured(root, f"call{number}", 1):
        plugin.PRINTS[behaviour](int(amount))
    print("between", file=sys.stderr, flush=True)
    os.write(1, b"after\\n")
"""


def run(root: Path, *calls: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    """The calls, one after the other, in a process."""
    environment = {**os.environ, "PYTHONPATH": str(PLUGIN)}
    command = [sys.executable, "-c", PROGRAM, str(root), *calls]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == status, done.stderr
    return done


def text_of(root: Path, name: str = "call0") -> list[str]:
    return read_log(log_path(root, name)).data.decode(errors="replace").splitlines()[1:]


def test_python_prints_warns_and_logs_in_each_call(tmp_path: Path) -> None:
    done = run(tmp_path, "text:0", "quiet:0", "text:0")
    for name in ("call0", "call2"):
        out, err, warning, _, record = text_of(tmp_path, name)
        assert (out, err) == ("to stdout", "to stderr")
        assert warning.endswith("UserWarning: a warning")
        assert record.endswith("INFO creditgrid_output.module: a record")
    assert sorted(found.name for found in call_logs(tmp_path)) == ["call0", "call2"]
    assert done.stdout == "after\n" * 3
    assert done.stderr == "between\n" * 3


@pytest.mark.parametrize(
    ("behaviour", "lines"),
    [
        ("c:0", ["from C", "without an end"]),
        ("child:0", ["from a child", "its error"]),
        ("close:0", ["before the close", "on stderr"]),
        ("replace:0", ["to the descriptor"]),
    ],
)
def test_others_than_python_print(tmp_path: Path, behaviour: str, lines: list[str]) -> None:
    done = run(tmp_path, behaviour, "text:0")
    assert text_of(tmp_path) == lines
    assert text_of(tmp_path, "call1")[0] == "to stdout"
    assert (done.stdout, done.stderr) == ("after\n" * 2, "between\n" * 2)


@pytest.mark.parametrize(("behaviour", "status"), [("kill", -signal.SIGKILL), ("exit", 3), ("segv", -signal.SIGSEGV)])
def test_the_last_words_of_a_process_are_kept(tmp_path: Path, behaviour: str, status: int) -> None:
    run(tmp_path, f"{behaviour}:3", status=status)
    assert text_of(tmp_path)[0] == "last words"


def test_binary_output_is_kept(tmp_path: Path) -> None:
    run(tmp_path, "binary:0")
    assert read_log(log_path(tmp_path, "call0")).data.endswith(
        bytes(range(256)) + b"\0\xff\xfe\n\x1b[31mred\x1b[2J\x1b]0;title\x07\n"
    )


@pytest.mark.parametrize(
    ("behaviour", "last"), [(f"flood:{200 * 2**20}", "after the flood"), (f"line:{50 * 10**6}", "the end of the line")]
)
def test_a_flood_is_bounded(tmp_path: Path, behaviour: str, last: str) -> None:
    run(tmp_path, behaviour)
    path = log_path(tmp_path, "call0")
    found = read_log(path)
    assert found.data.splitlines()[0].endswith(b"a call keeps its last 1,048,576 ===")
    assert found.data.decode().endswith(f"{last}\n")
    assert found.dropped + len(found.data) >= int(behaviour.partition(":")[2])
    assert path.stat().st_blocks * 512 < 1.2 * BOUND


def test_a_flood_is_bounded_while_it_lasts(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(PLUGIN)}
    child = subprocess.Popen([sys.executable, "-c", PROGRAM, str(tmp_path), f"flood:{2**40}"], env=environment)
    try:
        path, deadline = log_path(tmp_path, "call0"), time.monotonic() + 60
        written = kept = 0
        while written < 2**28 or kept > 2**28:  # until it has seen far less than what was written
            assert time.monotonic() < deadline
            assert kept < 2**32  # or it would fill the disk
            time.sleep(0.01)
            if path.exists():
                found = path.stat()
                written, kept = found.st_size, found.st_blocks * 512
    finally:
        child.kill()
        child.wait()


def test_a_thread_that_outlives_its_call_does_no_harm(tmp_path: Path) -> None:
    run(tmp_path, "thread:0", "slow:5")
    assert text_of(tmp_path)[0] == "before the thread"
    assert text_of(tmp_path, "call1")[-1] == "line 4"


def test_a_task_that_closes_all_descriptors_harms_itself_alone(tmp_path: Path) -> None:
    run(tmp_path, "close all:0", "text:0", "quiet:0", "child:0")
    assert text_of(tmp_path)[:2] == ["before the close", "on the descriptors that are left"]
    assert text_of(tmp_path, "call1")[0] == "to stdout"
    assert text_of(tmp_path, "call3")[0] == "from a child"


def test_a_full_disk_does_not_fail_the_call(tmp_path: Path) -> None:
    """/dev/full takes no byte; the log is written to it."""
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "call0").symlink_to("/dev/full")
    done = run(tmp_path, "text:0", "text:0")
    assert done.returncode == 0
    assert text_of(tmp_path, "call1")[0] == "to stdout"


# -- with real Ray -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kit]:
    root = tmp_path_factory.mktemp("output")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(PLUGIN), os.environ.get("PYTHONPATH")])))
        store = ArtifactStore(root / "artifacts")
        runner = RayRunner(store, root / "ray.log", cpus=1, gpus=0)
        found = Kit("ray", runner, store)
        runner.start()
        try:
            found.ready()
            yield found
        finally:
            runner.stop()


def cell(behaviour: str, amount: int = 0) -> Task:
    return plugin.cell(plugin.OutputParams(behaviour=behaviour, amount=amount), None)[0]


@pytest.mark.slow
def test_calls_of_a_worker_have_their_own_logs(kit: Kit) -> None:
    for number, behaviour in enumerate(("text", "quiet", "child", "binary", "text")):
        assert isinstance(kit.end_of(kit.submit([cell(behaviour)], log=f"ray{number}")), Finished)
    root = kit.store.root
    assert [text_of(root, f"ray{number}")[0] for number in (0, 4)] == ["to stdout"] * 2
    assert text_of(root, "ray2") == ["from a child", "its error"]
    assert not log_path(root, "ray1").exists()


@pytest.mark.slow
def test_the_log_of_a_dead_worker_is_its_traceback(kit: Kit) -> None:
    end = kit.failure_of(kit.submit([cell("segv")], log="dead"))
    assert end.crashed
    assert text_of(kit.store.root, "dead")[0] == "last words"
    assert "Segmentation fault" in "\n".join(text_of(kit.store.root, "dead"))
    assert isinstance(kit.end_of(kit.submit([cell("text")], log="next")), Finished)
    assert text_of(kit.store.root, "next")[0] == "to stdout"
