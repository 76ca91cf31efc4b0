"""A chaos run: work, kill, recover, again; then to the end, and held against an undisturbed run of the same specs."""

from __future__ import annotations

import hashlib
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
from deltalake import DeltaTable

from . import checks
from .checks import Compared, Leftovers, Rows, Violation
from .faults import Injector, Kill, deck
from .service import DidNotStart, Service
from .sweeps import Spec, Work
from .watching import FINISHED, Seen, Watcher

RECOVERY_TIMEOUT_S = 150.0
"""Without a call started or ended for so long after a kill, the run gives up."""
NOTICE_S = 30.0
"""A lost cluster is noticed by then: the service says that it is degraded."""
END_TIMEOUT_S = 900.0
DELAY_S = 0.1, 2.0
"""From the first progress to the next kill."""
ENOUGH_CELLS = {"slow": 60, "science": 1, "pair": 24, "noop": 1}
"""Open cells of each family; below it the next sweeps of it are submitted."""
RUSHED = 0.3
"""The share of kills of service and driver that do not wait for progress after the kill before."""
GRACE_S = 30.0
"""By then nothing of a service that has stopped is left running."""


@dataclass(slots=True)
class Recovery:
    """One kill, and how the service got over it."""

    kill: Kill
    seconds: float | None  # none: the next kill came before there was progress
    noticed: float | None
    again: int = 0  # calls that were started again after it, and before the next kill


@dataclass(slots=True)
class Finding:
    """What a service had made when it was stopped."""

    rows: Rows
    artifacts: dict[str, str]
    leftovers: Leftovers
    sweeps: int
    calls: int
    calls_again: int
    tasks_again: int
    seconds: float


@dataclass(slots=True)
class Outcome:
    """All there is to report."""

    seed: int
    recoveries: list[Recovery] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)
    specs: list[list[Spec]] = field(default_factory=list)
    disturbed: Finding | None = None
    undisturbed: Finding | None = None
    compared: Compared = field(default_factory=Compared)
    violations: list[Violation] = field(default_factory=list)
    views_seen: int = 0
    seconds: float = 0.0


class GaveUp(Exception):
    """Nothing advances any more; the violation that is noted says what."""


Say = Callable[[str], None]


class House:
    """A service, what is seen of it, and the sweeps that it was given."""

    def __init__(self, folder: Path, say: Say) -> None:
        self.service = Service(folder)
        self.seen = Seen()
        self.watcher = Watcher(lambda: self.service.url, self.seen)
        self.sweeps: dict[str, Spec] = {}
        self._say = say

    def start(self) -> None:
        self.service.start()
        self.watcher.start()

    def submit(self, specs: list[Spec]) -> None:
        """Submit specs at the same moment; a lost answer is asked for again under the same key until it is there."""
        gate = threading.Barrier(len(specs))
        found: list[str | None] = [None] * len(specs)

        def post(number: int) -> None:
            gate.wait()
            found[number] = self._post(specs[number])

        threads = [threading.Thread(target=post, args=(number,)) for number in range(len(specs))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for sweep, spec in zip(found, specs, strict=True):
            if sweep is None:
                raise GaveUp(f"the sweep {spec.document['name']!r} was not taken")
            self.sweeps[sweep] = spec
            self.watcher.follow(sweep)

    def _post(self, spec: Spec) -> str | None:
        body = json.dumps(spec.document).encode()
        headers = {"Idempotency-Key": hashlib.sha256(body).hexdigest(), "Content-Type": "application/json"}
        deadline = time.monotonic() + RECOVERY_TIMEOUT_S
        while time.monotonic() < deadline:
            try:
                answer = httpx.post(
                    f"{self.service.url}/v1/sweeps", content=body, headers=headers, timeout=60, trust_env=False
                )
            except httpx.TransportError:
                time.sleep(0.2)
                continue
            if answer.status_code == 201:
                return str(answer.json()["id"])
            self.seen.accuse("error for a sound request", f"POST /v1/sweeps: {answer.status_code} {answer.text[:500]}")
            if answer.status_code < 500:
                break
            time.sleep(1.0)
        return None

    def open_cells(self) -> Counter[str]:
        """Cells that wait or run, by family of their sweep, as they were last seen."""
        found: Counter[str] = Counter()
        for sweep, spec in self.sweeps.items():
            counts = self.seen.views[sweep]["counts"] if sweep in self.seen.views else {"pending": 1000}
            found[spec.family] += sum(n for state, n in counts.items() if state not in FINISHED)
        return found

    def wait(self, timeout: float = END_TIMEOUT_S) -> None:
        """Wait until every sweep has ended.

        Raises:
            GaveUp: when one has not in time, or the service is gone.
        """
        deadline = time.monotonic() + timeout
        while left := self._open():
            if not self.service.alive:
                self.seen.accuse("service that ended by itself", self.service.log_end())
                raise GaveUp("the service is gone")
            if time.monotonic() > deadline:
                self.seen.accuse("sweeps that do not end", f"after {timeout:.0f} s: {left}\n{self.service.log_end()}")
                raise GaveUp("sweeps do not end")
            time.sleep(0.3)

    def _open(self) -> dict[str, Any]:
        return {
            sweep: self.seen.views.get(sweep, {}).get("counts", "never seen")
            for sweep in self.sweeps
            if self.seen.views.get(sweep, {}).get("state") not in FINISHED
        }

    def close(self, began: float, *, restart: bool) -> Finding:
        """Look at everything a last time over HTTP, stop the service, and read what it left on the disk.

        ``restart``: once more before that, as what dead writers left goes when the service starts.
        """
        time.sleep(1.0)  # streams end by themselves
        self.watcher.stop()
        with httpx.Client(base_url=self.service.url, timeout=120, trust_env=False) as http:
            views = list(self.watcher.paged(http, "/v1/sweeps"))
            self._last_look(http, views)
        self._stop()
        if restart:
            self.service.start(ready=False)
            with httpx.Client(base_url=self.service.url, timeout=120, trust_env=False) as http:
                if list(self.watcher.paged(http, "/v1/sweeps")) != views:
                    self.seen.accuse("sweeps that a restart changes", "all had ended")
                self._clean(http)
            self._stop()
        table = DeltaTable(str(self.service.data / "results"))
        stored, broken = checks.artifacts(self.service.data / "artifacts")
        for violation in broken:
            self.seen.accuse(violation.kind, violation.what)
        starts, sizes = self.seen.starts(), self.seen.sizes()
        return Finding(
            rows=checks.rows_of(table.to_pyarrow_table()),
            artifacts=stored,
            leftovers=checks.leftovers(self.service.data),
            sweeps=len(views),
            calls=len(starts),
            calls_again=sum(len(times) - 1 for times in starts.values()),
            tasks_again=sum((len(times) - 1) * sizes[call] for call, times in starts.items()),
            seconds=time.monotonic() - began,
        )

    def _last_look(self, http: httpx.Client, views: list[dict[str, Any]]) -> None:
        if len(views) != len(self.sweeps) or {view["id"] for view in views} != self.sweeps.keys():
            self.seen.accuse("sweeps that nobody submitted, or lost ones", f"{len(views)} of {len(self.sweeps)}")
        sql = "SELECT sweep, state, count(*) AS n FROM cells GROUP BY sweep, state"
        by_sql: dict[str, dict[str, int]] = {}
        for row in http.post("/v1/query", json={"sql": sql}, params={"format": "json"}).json():
            by_sql.setdefault(row["sweep"], {})[row["state"]] = row["n"]
        for view in views:
            sweep = view["id"]
            self.seen.view(view)
            self.watcher.look(http, view)
            if view["state"] not in ("succeeded", "cached"):
                failures = self.watcher.get(http, f"/v1/sweeps/{sweep}/failures").json()["items"]
                causes = [(item["kind"], item["count"], item["cause"][:300]) for item in failures]
                self.seen.accuse("sweep that did not succeed", f"{view['name']} is {view['state']}: {causes}")
            if by_sql.get(sweep) != view["counts"]:
                self.seen.accuse("views that disagree", f"{sweep}: {view['counts']}, by SQL {by_sql.get(sweep)}")
            result = self.watcher.get(http, f"/v1/sweeps/{sweep}/results", format="arrow").content
            cells = set(pa.ipc.open_stream(result).read_all()["cell"].to_pylist())
            if len(cells) != view["cells"]:
                self.seen.accuse("results without a cell", f"{sweep}: {len(cells)} of {view['cells']} cells have rows")
            self.seen.ended(sweep, list(self.watcher.stream(sweep, {})))

    def _clean(self, http: httpx.Client) -> None:
        """Let the service remove what interrupted writers left, and nothing else."""
        answer = http.post("/v1/gc", json={})
        if answer.is_error:
            self.seen.accuse("error for a sound request", f"POST /v1/gc: {answer.status_code} {answer.text[:300]}")

    def _stop(self) -> None:
        try:
            if (status := self.service.stop()) != 0:
                self.seen.accuse("exit status", f"{status} after SIGTERM\n{self.service.log_end()}")
        finally:
            self._nothing_runs()
        if left := [path.name for path in self.service.folder.parent.glob("*ray*")]:
            self.seen.accuse("folder of Ray left after the stop", ", ".join(left))

    def _nothing_runs(self) -> None:
        deadline = time.monotonic() + GRACE_S
        while left := list(self.service.processes()):
            if time.monotonic() > deadline:
                names = Counter(" ".join(process.cmdline())[:80] for process in left if process.is_running())
                self.seen.accuse("processes left after the stop", str(dict(names)))
                return
            time.sleep(0.2)


def chaos(folder: Path, seed: int, kills: int, minutes: float, faults: Sequence[str], say: Say) -> Outcome:
    """The whole run below ``folder``. Everything that it starts is ended, however it ends."""
    began = time.monotonic()
    outcome = Outcome(seed)
    disturbed, undisturbed = House(folder / "a", say), House(folder / "b", say)
    try:
        outcome.disturbed = _disturb(disturbed, outcome, kills, began + 60 * minutes, faults, say)
        say(f"all {len(disturbed.sweeps)} sweeps have ended; now the same specs undisturbed")
        outcome.undisturbed = _undisturbed(undisturbed, outcome)
        _compare(outcome, outcome.disturbed, outcome.undisturbed)
    except (GaveUp, DidNotStart) as error:
        outcome.violations.append(Violation("gave up", str(error)))
    finally:
        for house in (disturbed, undisturbed):
            house.watcher.stop()
            house.service.end_all()
    outcome.violations[:0] = disturbed.seen.violations
    outcome.violations += [Violation(f"undisturbed run: {v.kind}", v.what) for v in undisturbed.seen.violations]
    outcome.views_seen = disturbed.seen.views_seen
    outcome.seconds = time.monotonic() - began
    return outcome


def _disturb(house: House, outcome: Outcome, kills: int, until: float, faults: Sequence[str], say: Say) -> Finding:
    began = time.monotonic()
    rng = random.Random(outcome.seed)
    injector = Injector(house.service, rng)
    work = Work()
    house.start()
    unpaused = False
    dealt = list(deck(rng, kills, faults))
    for number, (fault, point) in enumerate(dealt, 1):
        if time.monotonic() > until:
            say(f"the time is up after {number - 1} kills")
            break
        if not unpaused:
            _supply(house, outcome, work, fault.fresh)
        time.sleep(rng.uniform(*DELAY_S))
        kill = injector.strike(fault, point)
        if kill is None:
            outcome.missed.append(point or fault.name)
            say(f"{number:3} {fault.name:<11} {point:<24} nothing came to it")
            continue
        unpaused = number < len(dealt) and dealt[number][0].name in ("service", "driver") and rng.random() < RUSHED
        recovery = _restart(house, kill) if unpaused else _recover(house, kill)
        outcome.recoveries.append(recovery)
        noticed = "" if recovery.noticed is None else f", degraded after {recovery.noticed:.1f} s"
        took = "the next at once" if recovery.seconds is None else f"{recovery.seconds:5.1f} s to progress"
        say(f"{number:3} {fault.name:<11} {point:<24} {kill.victim:<28} {took}{noticed}")
    house.wait()
    found = house.close(began, restart=True)
    _attribute(outcome.recoveries, house.seen.starts())
    return found


def _attribute(recoveries: Sequence[Recovery], starts: Mapping[int, Sequence[float]]) -> None:
    """A start that is not a call's first is put down to the last kill before it."""
    for times in starts.values():
        for again in times[1:]:
            before = [recovery for recovery in recoveries if recovery.kill.at < again]
            if before:
                before[-1].again += 1


def _supply(house: House, outcome: Outcome, work: Work, fresh: str | None) -> None:
    """Submit sweeps of each family that has few cells left, and of the one that is to be fresh."""
    found = house.open_cells()
    for family in [family for family, enough in ENOUGH_CELLS.items() if found[family] < enough or family == fresh]:
        specs = work.next(family)
        outcome.specs.append(specs)
        house.submit(specs)


def _restart(house: House, kill: Kill) -> Recovery:
    if kill.fault.kills_service:
        house.service.start(ready=False)
    return Recovery(kill, None, None)


def _recover(house: House, kill: Kill) -> Recovery:
    service, seen = house.service, house.seen
    began = time.monotonic()
    noticed = None
    _restart(house, kill)
    # Rows that were ready before the cluster went are no sign that it is back.
    while (kill.fault.loses_cluster and noticed is None) or not seen.progressed_since(kill.at + (noticed or 0.0)):
        if not service.alive:
            seen.accuse("service that ended by itself", f"after {kill.fault.name}\n{service.log_end()}")
            raise GaveUp(f"the service is gone after {kill.fault.name} {kill.point}")
        if kill.fault.loses_cluster and noticed is None and not service.ready():
            noticed = time.time() - kill.at
        if time.monotonic() - began > RECOVERY_TIMEOUT_S:
            seen.accuse("no progress after a kill", f"{kill.fault.name} {kill.point}, {RECOVERY_TIMEOUT_S:.0f} s")
            raise GaveUp(f"nothing advances after {kill.fault.name} {kill.point}:\n{service.log_end()}")
        time.sleep(0.05)
    seconds = time.time() - kill.at
    if kill.fault.loses_cluster and (noticed is None or noticed > NOTICE_S):
        seen.accuse(
            "lost cluster that was not noticed", f"{kill.fault.name}: {noticed} s to degraded (at most {NOTICE_S})"
        )
    return Recovery(kill, seconds, noticed)


def _undisturbed(house: House, outcome: Outcome) -> Finding:
    began = time.monotonic()
    house.start()
    for specs in outcome.specs:
        house.submit(specs)
    house.wait()
    found = house.close(began, restart=False)
    if found.calls_again:
        house.seen.accuse("calls run again without a fault", str(found.calls_again))
    return found


def _compare(outcome: Outcome, disturbed: Finding, undisturbed: Finding) -> None:
    outcome.compared = checks.compare_rows(disturbed.rows, undisturbed.rows)
    outcome.violations += outcome.compared.violations
    outcome.violations += checks.compare_artifacts(disturbed.artifacts, undisturbed.artifacts)
    outcome.violations += disturbed.leftovers.violations()
