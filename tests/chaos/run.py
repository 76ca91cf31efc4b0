"""A chaos run: work, kill, recover, repeat; then finish, and compare with an undisturbed run of the same specs."""

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
from .faults import Injector, Kill, fault_sequence
from .service import DidNotStart, Service
from .sweeps import Spec, Work
from .watching import FINISHED, Observed, Watcher

RECOVERY_TIMEOUT_S = 150.0
"""If no call starts or ends for so long after a kill, the run gives up."""
NOTICE_S = 30.0
"""By then the service must report that it is degraded, after it has lost its cluster."""
END_TIMEOUT_S = 900.0
DELAY_S = 0.1, 2.0
"""From the first progress to the next kill."""
ENOUGH_CELLS = {"slow": 60, "science": 1, "pair": 24, "noop": 1}
"""Open cells of each family; with fewer, its next sweeps are submitted."""
RUSHED = 0.3
"""The share of kills of service and driver that do not wait for progress after the previous kill."""
GRACE_S = 30.0
"""By then no process of a stopped service may run."""


@dataclass(slots=True)
class Recovery:
    """One kill, and how the service recovered."""

    kill: Kill
    seconds: float | None  # None: the next kill came before there was progress
    noticed: float | None
    restarts: int = 0  # calls that were started again between this kill and the next


@dataclass(slots=True)
class RunResult:
    """What a service had made when it was stopped."""

    rows: Rows
    curves: Rows
    artifacts: dict[str, str]
    leftovers: Leftovers
    sweeps: int
    calls: int
    calls_again: int
    tasks_again: int
    seconds: float


@dataclass(slots=True)
class Outcome:
    """Everything that is reported."""

    seed: int
    recoveries: list[Recovery] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)
    specs: list[list[Spec]] = field(default_factory=list)
    disturbed: RunResult | None = None
    undisturbed: RunResult | None = None
    compared: Compared = field(default_factory=Compared)
    violations: list[Violation] = field(default_factory=list)
    views_seen: int = 0
    seconds: float = 0.0


class GaveUp(Exception):
    """Nothing advances any more; a recorded violation says why."""


Log = Callable[[str], None]


class Trial:
    """A service, what was observed of it, and the sweeps that were submitted to it."""

    def __init__(self, folder: Path, log: Log) -> None:
        self.service = Service(folder)
        self.seen = Observed()
        self.watcher = Watcher(lambda: self.service.url, self.seen)
        self.sweeps: dict[str, Spec] = {}
        self._log = log

    def start(self) -> None:
        self.service.start()
        self.watcher.start()

    def submit(self, specs: list[Spec]) -> None:
        """Submit specs at the same moment; a request whose answer is lost is repeated under the same key."""
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
                raise GaveUp(f"the sweep {spec.document['name']!r} was not accepted")
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
            self.seen.report("error for a valid request", f"POST /v1/sweeps: {answer.status_code} {answer.text[:500]}")
            if answer.status_code < 500:
                break
            time.sleep(1.0)
        return None

    def open_cells(self) -> Counter[str]:
        """Cells that wait or run, by family of their sweep, in the last views."""
        found: Counter[str] = Counter()
        for sweep, spec in self.sweeps.items():
            counts = self.seen.views[sweep]["counts"] if sweep in self.seen.views else {"pending": 1000}
            found[spec.family] += sum(n for state, n in counts.items() if state not in FINISHED)
        return found

    def wait(self, timeout: float = END_TIMEOUT_S) -> None:
        """Wait until every sweep has ended.

        Raises:
            GaveUp: when a sweep does not end in time, or the service is gone.
        """
        deadline = time.monotonic() + timeout
        while left := self._open():
            if not self.service.alive:
                self.seen.report("service that ended by itself", self.service.log_end())
                raise GaveUp("the service is gone")
            if time.monotonic() > deadline:
                self.seen.report("sweeps that do not end", f"after {timeout:.0f} s: {left}\n{self.service.log_end()}")
                raise GaveUp("sweeps do not end")
            time.sleep(0.3)

    def _open(self) -> dict[str, Any]:
        return {
            sweep: self.seen.views.get(sweep, {}).get("counts", "never seen")
            for sweep in self.sweeps
            if self.seen.views.get(sweep, {}).get("state") not in FINISHED
        }

    def close(self, started: float, *, restart: bool) -> RunResult:
        """Check everything a last time over HTTP, stop the service, and read its files.

        ``restart``: start and stop it once more before that, because a start removes what dead writers left.
        """
        time.sleep(1.0)  # streams end by themselves
        self.watcher.stop()
        with httpx.Client(base_url=self.service.url, timeout=120, trust_env=False) as http:
            views = list(self.watcher.paged(http, "/v1/sweeps"))
            self._check_views(http, views)
        self._stop()
        if restart:
            self.service.start(ready=False)
            with httpx.Client(base_url=self.service.url, timeout=120, trust_env=False) as http:
                if list(self.watcher.paged(http, "/v1/sweeps")) != views:
                    self.seen.report("sweeps that a restart changes", "all had ended")
                self._clean(http)
            self._stop()
        table = DeltaTable(str(self.service.data / "results"))
        stored, broken = checks.artifacts(self.service.data / "artifacts")
        for violation in broken:
            self.seen.report(violation.kind, violation.what)
        starts, sizes = self.seen.starts(), self.seen.sizes()
        return RunResult(
            rows=checks.rows_of(table.to_pyarrow_table()),
            curves=checks.curves_of(DeltaTable(str(self.service.data / "curves")).to_pyarrow_table()),
            artifacts=stored,
            leftovers=checks.leftovers(self.service.data),
            sweeps=len(views),
            calls=len(starts),
            calls_again=sum(len(times) - 1 for times in starts.values()),
            tasks_again=sum((len(times) - 1) * sizes[call] for call, times in starts.items()),
            seconds=time.monotonic() - started,
        )

    def _check_views(self, http: httpx.Client, views: list[dict[str, Any]]) -> None:
        if len(views) != len(self.sweeps) or {view["id"] for view in views} != self.sweeps.keys():
            self.seen.report("unknown or lost sweeps", f"{len(views)} of {len(self.sweeps)}")
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
                self.seen.report("sweep that did not succeed", f"{view['name']} is {view['state']}: {causes}")
            if by_sql.get(sweep) != view["counts"]:
                self.seen.report("views that disagree", f"{sweep}: {view['counts']}, by SQL {by_sql.get(sweep)}")
            result = self.watcher.get(http, f"/v1/sweeps/{sweep}/results", format="arrow").content
            cells = set(pa.ipc.open_stream(result).read_all()["cell"].to_pylist())
            if len(cells) != view["cells"]:
                self.seen.report("results without a cell", f"{sweep}: {len(cells)} of {view['cells']} cells have rows")
            self.seen.ended(sweep, list(self.watcher.stream(sweep, {})))

    def _clean(self, http: httpx.Client) -> None:
        """Let the service remove what interrupted writers left, and no artifact."""
        answer = http.post("/v1/gc", json={})
        if answer.is_error:
            self.seen.report("error for a valid request", f"POST /v1/gc: {answer.status_code} {answer.text[:300]}")

    def _stop(self) -> None:
        try:
            if (status := self.service.stop()) != 0:
                self.seen.report("exit status", f"{status} after SIGTERM\n{self.service.log_end()}")
        finally:
            self._check_processes()
        if left := [path.name for path in self.service.folder.parent.glob("*ray*")]:
            self.seen.report("folder of Ray left after the stop", ", ".join(left))

    def _check_processes(self) -> None:
        deadline = time.monotonic() + GRACE_S
        while left := list(self.service.processes()):
            if time.monotonic() > deadline:
                names = Counter(" ".join(process.cmdline())[:80] for process in left if process.is_running())
                self.seen.report("processes left after the stop", str(dict(names)))
                return
            time.sleep(0.2)


def chaos(folder: Path, seed: int, kills: int, minutes: float, faults: Sequence[str], log: Log) -> Outcome:
    """The whole run below ``folder``. All processes that it starts have ended when it returns or raises."""
    started = time.monotonic()
    outcome = Outcome(seed)
    disturbed, undisturbed = Trial(folder / "a", log), Trial(folder / "b", log)
    try:
        outcome.disturbed = _disturb(disturbed, outcome, kills, started + 60 * minutes, faults, log)
        log(f"all {len(disturbed.sweeps)} sweeps have ended; now the same specs run undisturbed")
        outcome.undisturbed = _undisturbed(undisturbed, outcome)
        _compare(outcome, outcome.disturbed, outcome.undisturbed)
    except (GaveUp, DidNotStart) as error:
        outcome.violations.append(Violation("gave up", str(error)))
    finally:
        for trial in (disturbed, undisturbed):
            trial.watcher.stop()
            trial.service.end_all()
    outcome.violations[:0] = disturbed.seen.violations
    outcome.violations += [Violation(f"undisturbed run: {v.kind}", v.what) for v in undisturbed.seen.violations]
    outcome.views_seen = disturbed.seen.views_seen
    outcome.seconds = time.monotonic() - started
    return outcome


def _disturb(trial: Trial, outcome: Outcome, kills: int, until: float, faults: Sequence[str], log: Log) -> RunResult:
    started = time.monotonic()
    rng = random.Random(outcome.seed)
    injector = Injector(trial.service, rng)
    work = Work()
    trial.start()
    unpaused = False
    planned = list(fault_sequence(rng, kills, faults))
    for number, (fault, point) in enumerate(planned, 1):
        if time.monotonic() > until:
            log(f"the time is up after {number - 1} kills")
            break
        if not unpaused:
            _supply(trial, outcome, work, fault.fresh)
        time.sleep(rng.uniform(*DELAY_S))
        kill = injector.strike(fault, point)
        if kill is None:
            outcome.missed.append(point or fault.name)
            log(f"{number:3} {fault.name:<11} {point:<24} no process reached it")
            continue
        unpaused = number < len(planned) and planned[number][0].name in ("service", "driver") and rng.random() < RUSHED
        recovery = _restart(trial, kill) if unpaused else _recover(trial, kill)
        outcome.recoveries.append(recovery)
        noticed = "" if recovery.noticed is None else f", degraded after {recovery.noticed:.1f} s"
        took = "the next kill follows at once" if recovery.seconds is None else f"{recovery.seconds:5.1f} s to progress"
        log(f"{number:3} {fault.name:<11} {point:<24} {kill.victim:<28} {took}{noticed}")
    trial.wait()
    found = trial.close(started, restart=True)
    _attribute(outcome.recoveries, trial.seen.starts())
    return found


def _attribute(recoveries: Sequence[Recovery], starts: Mapping[int, Sequence[float]]) -> None:
    """Count each start of a call after its first at the last kill before it."""
    for times in starts.values():
        for restart in times[1:]:
            before = [recovery for recovery in recoveries if recovery.kill.at < restart]
            if before:
                before[-1].restarts += 1


def _supply(trial: Trial, outcome: Outcome, work: Work, fresh: str | None) -> None:
    """Submit sweeps of each family that has few open cells, and of the family ``fresh``."""
    found = trial.open_cells()
    for family in [family for family, enough in ENOUGH_CELLS.items() if found[family] < enough or family == fresh]:
        specs = work.next(family)
        outcome.specs.append(specs)
        trial.submit(specs)


def _restart(trial: Trial, kill: Kill) -> Recovery:
    if kill.fault.kills_service:
        trial.service.start(ready=False)
    return Recovery(kill, None, None)


def _recover(trial: Trial, kill: Kill) -> Recovery:
    service, seen = trial.service, trial.seen
    started = time.monotonic()
    noticed = None
    _restart(trial, kill)
    # Rows that were ready before the cluster was lost do not show that it is back.
    while (kill.fault.loses_cluster and noticed is None) or not seen.progressed_since(kill.at + (noticed or 0.0)):
        if not service.alive:
            seen.report("service that ended by itself", f"after {kill.fault.name}\n{service.log_end()}")
            raise GaveUp(f"the service is gone after {kill.fault.name} {kill.point}")
        if kill.fault.loses_cluster and noticed is None and not service.ready():
            noticed = time.time() - kill.at
        if time.monotonic() - started > RECOVERY_TIMEOUT_S:
            seen.report("no progress after a kill", f"{kill.fault.name} {kill.point}, {RECOVERY_TIMEOUT_S:.0f} s")
            raise GaveUp(f"nothing advances after {kill.fault.name} {kill.point}:\n{service.log_end()}")
        time.sleep(0.05)
    seconds = time.time() - kill.at
    if kill.fault.loses_cluster and (noticed is None or noticed > NOTICE_S):
        seen.report(
            "lost cluster that was not noticed", f"{kill.fault.name}: {noticed} s to degraded (at most {NOTICE_S})"
        )
    return Recovery(kill, seconds, noticed)


def _undisturbed(trial: Trial, outcome: Outcome) -> RunResult:
    started = time.monotonic()
    trial.start()
    for specs in outcome.specs:
        trial.submit(specs)
    trial.wait()
    found = trial.close(started, restart=False)
    if found.calls_again:
        trial.seen.report("calls run again without a fault", str(found.calls_again))
    return found


def _compare(outcome: Outcome, disturbed: RunResult, undisturbed: RunResult) -> None:
    outcome.compared = checks.compare_rows(disturbed.rows, undisturbed.rows)
    outcome.violations += outcome.compared.violations
    outcome.violations += checks.compare_curves(disturbed.curves, undisturbed.curves)
    outcome.violations += checks.compare_artifacts(disturbed.artifacts, undisturbed.artifacts)
    outcome.violations += disturbed.leftovers.violations()
