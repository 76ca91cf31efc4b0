"""How the Ray runner handles dying workers, nodes and clusters of real Ray; clusters end with their tests."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from runner_kit import Kit, drivers

from creditgrid.core.experiments.stages import code_task
from creditgrid.core.task import Resources, Task
from creditgrid.core.units.code import sha256_of, to_arrays
from creditgrid.workers.artifacts import ArtifactStore
from creditgrid.workers.ray.local_cluster import LocalCluster
from creditgrid.workers.ray.runner import RayRunner
from creditgrid.workers.runner import Advanced, Failed, Finished, Lost, Started

pytestmark = pytest.mark.slow
PLUGIN = Path(__file__).resolve().parents[2] / "plugin_faults"
OWN_MEMORY = Path(__file__).parent / "own_memory"
SMALL_MACHINE = 3 * 2**30
"""Three workers hold about 1 GiB before any call; the hog may take less than 2 GiB more."""
CPUS = 3
NOTICED_S = 30.0
CANCELLED_S = 5.0


@pytest.fixture(scope="module", autouse=True)
def _environment() -> Iterator[None]:
    """Workers find the plugin by the environment; token files are not tested here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(PLUGIN), os.environ.get("PYTHONPATH")])))
        patch.setenv("RAY_AUTH_MODE", "disabled")
        yield


def fault(behaviour: str, amount: int = 0, name: str = "") -> Task:
    params = {"behaviour": behaviour, "amount": amount, "name": name}
    key = hashlib.sha256(json.dumps(params).encode()).hexdigest()
    return Task("fault", 1, params, {}, key, key)


def cluster_processes() -> list[psutil.Process]:
    """Every process below the driver's cluster: gcs_server, raylet, agents and workers."""
    (driver,) = drivers()
    return driver.children(recursive=True)


def named(processes: list[psutil.Process], *names: str) -> list[psutil.Process]:
    return [process for process in processes if process.name() in names]


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [process for process in processes if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


def within(seconds: float, what: Any) -> float:
    """Wait until ``what()`` is true; the seconds that took."""
    started_at = time.monotonic()
    while not what():
        assert time.monotonic() < started_at + seconds
        time.sleep(0.1)
    return time.monotonic() - started_at


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kit]:
    root = tmp_path_factory.mktemp("faults")
    store = ArtifactStore(root / "artifacts")
    runner = RayRunner(store, root / "ray.log", cpus=CPUS, gpus=0)
    kit = Kit("ray", runner, store)
    runner.start()
    try:
        kit.ready()
        yield kit
    finally:
        runner.stop()
    assert drivers() == []
    assert not LocalCluster(store.root).private.exists()


@pytest.fixture
def kit(shared: Kit) -> Kit:
    shared.ready()
    shared.runner.poll(0)
    shared.seen.clear()
    return shared


# -- workers ---------------------------------------------------------------------------------------------------------


def test_a_call_reports_which_process_died_and_of_what(kit: Kit) -> None:
    calls = {how: kit.submit([fault(how)]) for how in ("kill", "exit", "segv")}
    for how, call in calls.items():
        end = kit.failure_of(call)
        assert (end.transient, end.crashed) == (True, True), how
        (first, *_) = kit.of(call, Advanced)
        assert f"its worker process {first.note} on {end.host} died: " in end.error
        assert "\n" not in end.error
        (started,) = kit.of(call, Started)
        assert end.host == started.host
    segfault = kit.failure_of(calls["segv"])
    assert "SIGSEGV" in segfault.error or "Segmentation fault" in segfault.error
    assert "string_at" in segfault.traceback  # the end of its log
    assert "killed, or ended by what the task calls" in kit.failure_of(calls["kill"]).error


def test_a_task_that_exits_ends_its_call_alone(kit: Kit) -> None:
    end = kit.failure_of(kit.submit([fault("sysexit")]))
    assert end.error == "SystemExit: the task asked its process to end with status 4"
    assert (end.transient, end.crashed) == (True, True)
    assert isinstance(kit.end_of(kit.submit([fault("none")])), Finished)


def test_a_process_that_has_executed_brought_code_computes_nothing_else(kit: Kit) -> None:
    """What a file changes in its process would reach the results of others, whose keys do not hold the file."""
    text = b"""import torch
from creditgrid.core.units.decorators import rule

torch.set_default_dtype(torch.float64)


@rule
def doubled(branch, credit):
    \"\"\"Twice the inner product.\"\"\"
    return 2 * credit / branch.shape[-2]
"""
    files = {"doubled.py": text}
    code = code_task(sha256_of(files))
    kit.store.save(code.key, code.payload(), to_arrays(files), {})
    own = replace(fault("none", name="own"), parents={"code": code.key})
    call = kit.submit([own], [code.key])
    assert isinstance(kit.end_of(call), Finished)
    pid = int(kit.of(call, Advanced)[0].note)
    within(NOTICED_S, lambda: not psutil.pid_exists(pid))
    assert isinstance(kit.end_of(kit.submit([fault("none", name="other")])), Finished)


# -- cancel ----------------------------------------------------------------------------------------------------------


def test_calls_that_ignore_their_cancellation_end_within_seconds(kit: Kit) -> None:
    running = [kit.submit([fault(how, 100, "cancel")]) for how in ("swallow", "hold", "sleep")]
    kit.until(lambda seen: all(kit.of(call, Advanced) for call in running))
    queued = kit.submit([fault("none", name="queued")])
    time.sleep(0.5)  # so that they are in their work
    started_at = time.monotonic()
    for call in (queued, *running):
        kit.runner.cancel(call)
        kit.runner.cancel(call)  # a second time changes nothing
    took = {}
    for call in (queued, *running):
        end = kit.failure_of(call)
        assert (end.error, end.transient, end.crashed) == ("cancelled", False, False)
        took[call] = time.monotonic() - started_at
    assert kit.of(queued, Started) == []
    assert max(took.values()) < CANCELLED_S, took
    again = [kit.submit([fault("sleep", 100, f"again {number}")]) for number in range(CPUS)]
    kit.running(*again)  # all at the same time: every slot is free
    for call in again:
        kit.runner.cancel(call)
    assert [kit.failure_of(call).error for call in again] == ["cancelled"] * CPUS
    kit.seen += kit.runner.poll(1)
    assert sum(isinstance(item, Failed) for item in kit.seen) == 4 + CPUS


def test_a_cancelled_call_whose_worker_dies_ends_once(kit: Kit) -> None:
    call = kit.submit([fault("swallow", 100, "both")])
    kit.until(lambda seen: bool(kit.of(call, Advanced)))
    kit.runner.cancel(call)
    os.kill(int(kit.of(call, Advanced)[0].note), signal.SIGKILL)
    assert kit.failure_of(call).error == "cancelled"
    assert not [item for item in kit.runner.poll(4) if isinstance(item, Failed)]


# -- memory ----------------------------------------------------------------------------------------------------------


def test_a_call_that_takes_too_much_memory_is_killed_and_its_neighbours_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Ray's own monitor, which measures the machine, never acts; ours measures the workers of this test.
    monkeypatch.delenv("RAY_memory_monitor_refresh_ms")
    monkeypatch.setenv("RAY_memory_usage_threshold", "1")
    monkeypatch.setenv("CREDITGRID_TEST_MEMORY", str(SMALL_MACHINE))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(OWN_MEMORY), os.environ["PYTHONPATH"]]))
    store = ArtifactStore(tmp_path / "artifacts")
    kit = Kit("ray", RayRunner(store, tmp_path / "ray.log", cpus=CPUS, gpus=0), store)
    kit.runner.start()
    try:
        kit.ready()
        assert kit.failure_of(kit.submit([fault("kill")])).crashed  # a dead process does not stop the others' watch
        hog = kit.submit([fault("hog", 6)])  # the first: Ray itself would kill its younger neighbours
        kit.running(hog)
        neighbours = [kit.submit([fault("sleep", 5, f"beside {number}")]) for number in range(2)]
        kit.running(*neighbours)
        end = kit.failure_of(hog)
        assert (end.transient, end.crashed) == (True, True)
        assert end.error.startswith("out of memory: its process ")
        assert "of 3.0 GiB were in use there" in end.error
        assert all(isinstance(kit.end_of(call), Finished) for call in neighbours)
    finally:
        kit.runner.stop()


# -- the local cluster -----------------------------------------------------------------------------------------------


def test_a_local_cluster_is_closed_to_others(kit: Kit) -> None:
    assert isinstance(kit.end_of(kit.submit([fault("array", 10, "closed")])), Finished)  # a worker is up
    addresses = {
        connection.laddr.ip
        for process in cluster_processes()
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    assert addresses <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    cluster = LocalCluster(kit.store.root)
    assert stat.S_IMODE(cluster.private.stat().st_mode) == 0o700
    assert list(cluster.folder.glob("session_2*"))


@pytest.mark.parametrize("victims", [("raylet",), ("gcs_server", "raylet")], ids="+".join)
def test_a_local_cluster_that_dies_is_noticed_and_started_again(kit: Kit, victims: tuple[str, ...]) -> None:
    base = fault("array", 200_000, "kept")
    assert isinstance(kit.end_of(kit.submit([base])), Finished)
    call = kit.submit([fault("hold", 100, "+".join(victims))])
    kit.until(lambda seen: bool(kit.of(call, Advanced)))
    old = cluster_processes()
    dying = named(old, *victims)
    assert len(dying) == len(victims)
    for process in dying:
        process.kill()
    noticed = within(NOTICED_S, lambda: kit.runner.capacity().degraded is not None)
    kit.until(lambda seen: any(isinstance(item, Lost) for item in seen), 5)
    early = kit.submit([fault("none", name="+".join(victims))], [base.key])  # while there is no cluster
    back = kit.ready(60)
    print(f"{'+'.join(victims)}: noticed after {noticed:.1f} s, back after {back:.1f} s more")
    assert isinstance(kit.end_of(early), Finished)
    assert int(kit.store.load(fault("none", name="+".join(victims)).key)["sum"]) == 200_000
    assert sum(isinstance(item, Lost) for item in kit.seen) == 1
    assert alive(old) == []
    assert len(list(LocalCluster(kit.store.root).folder.glob("session_2*"))) == 2  # this one, and the last one's logs


# -- a cluster joined by address -------------------------------------------------------------------------------------


class Cluster:
    """Nodes of one cluster on this machine."""

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        self.folder = Path(tempfile.mkdtemp(prefix="cgray-"))
        self._sessions: list[int] = []

    def add(self, cpus: int) -> list[psutil.Process]:
        """Start a node, the head first; its processes."""
        before = set(self.processes())
        where = [f"--address={self.address}"]
        if not before:
            host, port = self.address.split(":")
            where = ["--head", f"--node-ip-address={host}", f"--port={port}", "--include-dashboard=false"]
            where += [f"--temp-dir={self.folder}", "--disable-usage-stats"]
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", *where, f"--num-cpus={cpus}", "--num-gpus=0"]
        command += ["--object-store-memory=200000000"]
        started = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        self._sessions.append(started.pid)  # every process of the node stays in it
        assert started.wait(90) == 0
        return [process for process in self.processes() if process not in before]

    def processes(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
                if os.getsid(process.pid) in self._sessions and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def kill(self) -> None:
        for process in self.processes():
            process.kill()
        within(10, lambda: not self.processes())


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    found = Cluster()
    try:
        yield found
    finally:
        found.kill()
        shutil.rmtree(found.folder)


def total(key: str, kit: Kit, tries: int) -> Mapping[int, Finished | Failed]:
    """The ends of the calls that sum an artifact, by attempt, up to the first that succeeds."""
    ends: dict[int, Finished | Failed] = {}
    for attempt in range(tries):
        ends[attempt] = kit.end_of(kit.submit([fault("none", name=f"sum {key}")], [key]), 90)
        if isinstance(ends[attempt], Finished):
            break
    return ends


def test_a_joined_cluster_loses_a_node_and_then_everything(cluster: Cluster, tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path / "artifacts")
    kit = Kit("ray", RayRunner(store, tmp_path / "ray.log", address=cluster.address), store)
    kit.runner.start()
    try:
        # Nothing listens there yet.
        within(10, lambda: "no Ray cluster answers at" in (kit.runner.capacity().degraded or ""))
        assert cluster.address in (kit.runner.capacity().degraded or "")
        cluster.add(cpus=1)
        second = cluster.add(cpus=2)
        kit.ready()
        within(20, lambda: kit.runner.capacity().nodes == 2)

        # The second node alone has two CPUs: an artifact is made there, and a call runs there when it dies.
        two = Resources(cpu=2)
        base = fault("array", 5_000_000)
        assert isinstance(kit.end_of(kit.submit([base], resources=two)), Finished)
        call = kit.submit([fault("hold", 200)], resources=two)
        kit.until(lambda seen: bool(kit.of(call, Advanced)))
        worker = psutil.Process(int(kit.of(call, Advanced)[0].note))
        started_at = time.monotonic()
        (raylet,) = named(second, "raylet")
        raylet.kill()
        ends = total(base.key, kit, 3)  # at once: the loss of the object is not noticed yet
        summed = time.monotonic() - started_at
        end = kit.failure_of(call)
        assert (end.transient, end.crashed) == (True, False)
        assert "node" in end.error
        assert isinstance(list(ends.values())[-1], Finished), ends
        assert all(item.transient and not item.crashed for item in ends.values() if isinstance(item, Failed))
        assert int(store.load(fault("none", name=f"sum {base.key}").key)["sum"]) == 5_000_000
        assert alive([worker]) == []
        print(f"summed after {summed:.1f} s in {len(ends)} attempts")
        within(60, lambda: kit.runner.capacity().nodes == 1)
        assert kit.runner.capacity().degraded is None

        # Everything dies, and starts again at the same address.
        call = kit.submit([fault("hold", 201)])
        kit.until(lambda seen: len(kit.of(call, Advanced)) > 0)
        cluster.kill()
        noticed = within(NOTICED_S, lambda: kit.runner.capacity().degraded is not None)
        kit.until(lambda seen: any(isinstance(item, Lost) for item in seen), 5)
        within(10, lambda: "no Ray cluster answers at" in (kit.runner.capacity().degraded or ""))
        cluster.add(cpus=1)
        back = kit.ready(45)
        print(f"noticed after {noticed:.1f} s, back {back:.1f} s after the cluster")
        assert isinstance(kit.end_of(kit.submit([fault("none", name="after")], [base.key])), Finished)
        assert sum(isinstance(item, Lost) for item in kit.seen) == 1
    finally:
        kit.runner.stop()
