"""The faults: what is killed, when, and how the kill is confirmed."""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from .service import Service, send

STRIKE_TIMEOUT_S = 60.0
"""A point that no process reached by then is disarmed."""
SPARED_AFTER = 1
"""A call whose worker was killed this often is spared: a third crash would rightly fail it."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What is killed.

    ``points``: moments that are armed, one after the other; without any, the kill comes from outside. ``fresh``: the
    family of sweeps that reaches such a moment when it is new.
    """

    name: str
    kills_service: bool
    loses_cluster: bool
    points: Sequence[str] = ()
    fresh: str | None = None


FAULTS = {
    fault.name: fault
    for fault in (
        Fault("service", kills_service=True, loses_cluster=False),
        Fault("worker", kills_service=False, loses_cluster=False),
        Fault("raylet", kills_service=False, loses_cluster=True),
        Fault("cluster", kills_service=False, loses_cluster=True),
        Fault("driver", kills_service=False, loses_cluster=True),
        Fault("artifact", False, False, ("artifact-before-rename", "artifact-after-rename"), "slow"),
        Fault("delta", True, False, ("delta-during", "delta-after", "delta-before"), "slow"),
        Fault("compaction", True, False, ("compaction-during", "compaction-after", "compaction-before"), "slow"),
        Fault("ledger", True, False, ("ledger-before-commit", "ledger-after-commit")),
        Fault("save", False, False, ("save-before-rename", "save-after-rename"), "science"),
    )
}


@dataclass(frozen=True, slots=True)
class Kill:
    """A kill: its fault and point, its time (Unix seconds), and a description of the victim."""

    fault: Fault
    point: str
    at: float
    victim: str


def fault_sequence(rng: random.Random, kills: int, names: Sequence[str]) -> Iterator[tuple[Fault, str]]:
    """The faults to make, each with a point: all faults in shuffled rounds, the points of each in turn."""
    chosen = [FAULTS[name] for name in names]
    points = {fault.name: _cycle(rng, fault.points) for fault in chosen}
    made = 0
    while True:
        for fault in rng.sample(chosen, len(chosen)):
            if made == kills:
                return
            made += 1
            yield fault, next(points[fault.name])


def _cycle(rng: random.Random, points: Sequence[str]) -> Iterator[str]:
    start = rng.randrange(len(points)) if points else 0
    while True:
        for number in range(len(points)):
            yield points[(start + number) % len(points)]
        if not points:
            yield ""


class Injector:
    """Makes the faults in one service."""

    def __init__(self, service: Service, rng: random.Random) -> None:
        self._service, self._rng = service, rng
        self._hit: dict[str, int] = {}  # Ray tasks by name, and how often their workers were killed

    def strike(self, fault: Fault, point: str) -> Kill | None:
        """Make the fault; None if there was no victim in time."""
        if fault.points:
            return self._armed(fault, point)
        if fault.name == "worker":
            return self._worker(fault)
        if fault.name == "service":
            at = time.time()
            self._service.kill()
            return Kill(fault, "", at, "service")
        victims = {
            "raylet": self._service.raylets,
            "driver": self._service.driver,
            "cluster": self._service.cluster,
        }[fault.name]
        deadline = time.monotonic() + STRIKE_TIMEOUT_S
        while time.monotonic() < deadline:
            found = victims()
            at = time.time()
            if killed := _kill(found):
                return Kill(fault, "", at, f"{killed} processes")
            time.sleep(0.1)
        return None

    def _worker(self, fault: Fault) -> Kill | None:
        deadline = time.monotonic() + STRIKE_TIMEOUT_S
        while time.monotonic() < deadline:
            workers = self._service.workers_at_work()
            names = sorted(name for name in workers if name not in self._spared())
            if names:
                name = self._rng.choice(names)
                at = time.time()
                if _kill([workers[name]]):
                    self._count(name)
                    return Kill(fault, "", at, name)
            time.sleep(0.02)
        return None

    def _armed(self, fault: Fault, point: str) -> Kill | None:
        armed, struck = self._service.armed / point, self._service.armed / f"{point}.struck"
        taken = armed.with_name(f"{point}.taken")
        for old in (struck, taken):
            old.unlink(missing_ok=True)
        fresh = armed.with_name(f"{point}.arming")
        fresh.write_text("\n".join(self._spared()))
        fresh.rename(armed)  # it appears complete
        deadline = time.monotonic() + STRIKE_TIMEOUT_S
        while not struck.exists():
            if time.monotonic() > deadline and _disarmed(armed):
                return None
            time.sleep(0.01)
        if fault.kills_service:
            at = struck.stat().st_ctime  # of its last rename
            self._service.await_death(10)
            return Kill(fault, point, at, "service")
        note: dict[str, Any] = json.loads(struck.read_text())
        _await_death(note["pid"])
        self._count(note["title"])
        return Kill(fault, point, note["at"], note["title"])

    def _spared(self) -> list[str]:
        return [name for name, hits in self._hit.items() if hits >= SPARED_AFTER]

    def _count(self, name: str) -> None:
        self._hit[name] = self._hit.get(name, 0) + 1


def _disarmed(armed: Path) -> bool:
    try:
        armed.unlink()
    except FileNotFoundError:
        return False  # a process has taken it, and is about to kill itself
    return True


def _await_death(pid: int) -> None:
    """Wait until the process that killed itself is gone, or a zombie."""
    try:
        process = psutil.Process(pid)
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.005)
    except psutil.NoSuchProcess:
        return


def _kill(victims: Sequence[psutil.Process]) -> int:
    return sum(send(victim, signal.SIGKILL) for victim in victims)
