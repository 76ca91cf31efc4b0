"""The service below its API in one process, with a runner that a test drives message by message."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import torch

from creditgrid.core.datasets import resolve
from creditgrid.core.errors import ArtifactMissing
from creditgrid.core.spec.text import SpecText
from creditgrid.core.states import OPEN, State
from creditgrid.core.wire import TERMINAL_EVENT, EventView, PlanView
from creditgrid.service.ledger import counts, tables
from creditgrid.service.ledger.counts import sweeps_needing
from creditgrid.service.ledger.ledger import Ledger
from creditgrid.service.ledger.task_states import NOT_ENDED
from creditgrid.service.planning.naming import Naming, NamingRequest
from creditgrid.service.planning.naming import name as name_cells
from creditgrid.service.planning.plans import nobody_stops
from creditgrid.service.results.curves import Curves
from creditgrid.service.results.table import Results
from creditgrid.service.scheduling import row_commits, scheduler
from creditgrid.service.services import wire_services
from creditgrid.workers.artifacts import ArtifactStore
from creditgrid.workers.execute import execute
from creditgrid.workers.runner import Call, Capacity, Failed, Lost, Message, Runner, Started

both_databases = pytest.mark.usefixtures("url")
"""The test runs with a ledger in SQLite and with one in PostgreSQL."""


class Crash(BaseException):
    """The process dies here."""


class ScriptedRunner:
    """A runner without processes: a call stays in ``calls`` until the test says what happens to it."""

    cpus, gpus = 8.0, 0.0

    def __init__(self, store: ArtifactStore) -> None:
        self._store = store
        self._messages: list[Message] = []
        self.calls: dict[int, Call] = {}
        self.history: list[Call] = []
        self.cancelled: list[int] = []
        self.degraded: str | None = None

    def start(self) -> None:
        pass

    def stop(self) -> None:
        pass

    def capacity(self) -> Capacity:
        return Capacity(self.cpus, self.gpus, 1, self.degraded)

    def submit(self, call: Call) -> None:
        assert call.id not in self.calls, "a call in flight was submitted again"
        self.history.append(call)
        if not any(isinstance(message, Lost) for message in self._messages):  # otherwise it is lost with the others
            self.calls[call.id] = call

    def poll(self, timeout: float) -> list[Message]:
        found, self._messages = self._messages, []
        return found

    def cancel(self, call: int) -> None:
        self.cancelled.append(call)
        if self.calls.pop(call, None) is not None:
            self.report(Failed(call, "cancelled", "", transient=False))

    # -- what happens ----------------------------------------------------------------------------------------------

    def report(self, *messages: Message) -> None:
        self._messages.extend(messages)

    def start_call(self, call: int) -> None:
        self.report(Started(call, "host", "cpu"))

    def work(self, call: int) -> None:
        """Compute the call as a worker does."""
        done = self.calls.pop(call)
        inputs, missing = {}, []
        for key in done.inputs:
            try:
                inputs[key] = self._store.load(key)
            except ArtifactMissing:
                missing.append(key)
        if missing:
            self.report(Failed(call, "an input is gone", "", transient=False, missing=missing))
            return
        for item in execute(done, inputs, self._store, torch.device("cpu")):
            if not isinstance(item, tuple):
                self.report(item)

    def fail(self, call: int, *, transient: bool = False, error: str = "ValueError: on request") -> None:
        del self.calls[call]
        self.report(Failed(call, error, f"Traceback\n{error}", transient, "host"))

    def crash(self, call: int) -> None:
        """The process of the call dies."""
        del self.calls[call]
        self.report(Failed(call, "the worker died", "", transient=True, host="host", crashed=True))

    def lose(self, reason: str = "the cluster is gone") -> None:
        """All calls in flight are lost, and so are those submitted before the scheduler reads of the loss."""
        self.calls.clear()
        self._messages.append(Lost(reason))


class House:
    """Ledger, planner, results and scheduler over one folder. ``step`` is one round of the scheduler's loop."""

    def __init__(
        self, root: Path, runner: Callable[[ArtifactStore], Runner] = ScriptedRunner, url: str | None = None
    ) -> None:
        self.root, self.url = root, url or f"sqlite:///{root / 'ledger.sqlite'}"
        self.store = ArtifactStore(root / "artifacts")
        self.ledger = Ledger(self.url)
        self.results = Results(root / "results", self.ledger.identity())
        self.curves = Curves(root / "curves", self.ledger.identity())
        self.runner: Any = runner(self.store)
        self.meanwhile: Callable[[], object] = lambda: None
        """Happens while a plan is made: before its header and before each chunk."""
        self.services = parts = wire_services(
            self.ledger, self.results, self.curves, self.store, self.runner, namer=self._name
        )
        self.scheduler, self.control = parts.scheduler, parts.control
        self.plans, self.sweeps, self.cells, self.tasks = parts.plans, parts.sweeps, parts.cells, parts.tasks
        self.failures, self.summaries, self.sql_tables = parts.failures, parts.summaries, parts.sql_tables

    def restarted(self) -> House:
        """Another service over the same folder and ledger, as after a crash of the first."""
        return House(self.root, url=self.url)

    def submit(self, **document: Any) -> str:
        return self.control.submit(SpecText.of({"name": "n", "experiment": "noop", **document}))[0]

    def _name(self, request: NamingRequest, check: Callable[[], None]) -> Naming:
        for item in name_cells(request, resolve):
            self.meanwhile()
            check()
            yield item

    def plan(self, document: Mapping[str, Any]) -> PlanView:
        """A dry run."""
        return self.plans.view(SpecText.of(document), None, nobody_stops)

    def step(self, times: int = 1) -> None:
        for _ in range(times):
            self.scheduler.step()

    def drain(self) -> None:
        """Compute all calls until no call is open and no row waits."""
        for _ in range(200):
            self.step()
            for call in list(self.runner.calls):
                self.runner.work(call)
            if not self.open_calls() and not self.scheduler.commits.waiting:
                return
        raise AssertionError(f"calls stay open: {self.open_calls()}")

    def drain_sweep(self, sweep: str) -> None:
        """Compute all calls until the sweep has ended."""
        for _ in range(200):
            self.step()
            for call in list(self.runner.calls):
                self.runner.work(call)
            if self.state(sweep).finished:
                return
        raise AssertionError(f"the sweep does not end: {self.sweeps.get(sweep)}")

    def open_calls(self) -> list[int]:
        with self.ledger.read() as connection:
            return list(connection.scalars(sa.select(tables.calls.c.id).where(tables.calls.c.state.in_(OPEN))))

    def call_states(self) -> dict[int, State]:
        with self.ledger.read() as connection:
            return {row.id: State(row.state) for row in connection.execute(sa.select(tables.calls))}

    def state(self, sweep: str) -> State:
        return self.sweeps.get(sweep).state

    def counts(self, sweep: str) -> dict[State, int]:
        return self.sweeps.get(sweep).counts

    def events(self, sweep: str) -> list[EventView]:
        return self.sweeps.events(sweep, 0, 10_000)

    def event_types(self, sweep: str) -> list[str]:
        return [event.type for event in self.events(sweep)]

    def rows(self) -> list[dict[str, Any]]:
        dataset = self.results.dataset()
        rows: list[dict[str, Any]] = [] if dataset is None else dataset.to_table().to_pylist()
        return rows

    def wait(self, sweep: str, within: float = 60.0, *, despite_trouble: bool = False) -> State:
        """Wait for a started scheduler to end the sweep; a problem of the scheduler fails the test unless allowed."""
        deadline = time.monotonic() + within
        while not (state := self.state(sweep)).finished:
            assert despite_trouble or self.scheduler.problem() is None, self.scheduler.problem()
            assert time.monotonic() < deadline, (self.scheduler.problem(), self.sweeps.get(sweep))
            time.sleep(0.02)
        return state

    def check(self) -> None:
        """Assert what holds at any time."""
        rows = Counter(row["cell"] for row in self.rows())
        assert all(n == 1 for n in rows.values()), "a cell is in the table twice"
        with self.ledger.read() as connection:
            sweeps = connection.execute(sa.select(tables.sweeps)).all()
            assert all(sweep.planned for sweep in sweeps), "something is left of a plan"
            cells = connection.execute(sa.select(tables.cells)).all()
            for call in connection.execute(sa.select(tables.calls).where(tables.calls.c.state == State.PENDING)):
                waits = sa.select(tables.waits.c.key).where(tables.waits.c.call == call.id)
                opened = sa.select(sa.func.count()).where(tables.tasks.c.key.in_(waits), NOT_ENDED)
                assert connection.scalar(opened) == call.waiting, "a call does not count what it waits for"
                needing = sweeps_needing(connection, call.id)
                able = {sweep.id for sweep in sweeps if sweep.id in needing and not sweep.paused}
                states = {sweep.id: (sweep.state, sweep.paused, sweep.priority) for sweep in sweeps}
                text = f"nothing starts call {call.id} of {call.sweep}, which {able} need: {states}"
                assert not able or call.sweep in able, text
        with self.ledger.write() as connection:
            self._check_counts(connection)
        for sweep in sweeps:
            view = self.sweeps.get(sweep.id)
            assert sum(view.counts.values()) == view.cells == sum(cell.sweep == sweep.id for cell in cells)
            events = self.events(sweep.id)
            assert [event.id for event in events] == sorted({event.id for event in events})
            assert events[0].type == "sweep.created"
            if view.state.finished:
                assert events[-1].type == TERMINAL_EVENT
                assert events[-1].data["state"] == view.state
                assert view.finished_at is not None
                assert not set(view.counts) & set(OPEN)
            else:
                opening = (TERMINAL_EVENT, "sweep.created", "sweep.retried", "sweep.extended")
                assert [event.type for event in events if event.type in opening][-1] != TERMINAL_EVENT
        for cell in cells:
            if cell.state in (State.SUCCEEDED, State.CACHED):
                assert cell.key in rows, "a cell has a result and no row in the table"

    def _check_counts(self, connection: sa.Connection) -> None:
        """Assert that the counts and needs that transitions keep are what a recount gives."""

        def kept() -> tuple[list[Any], list[Any]]:
            nonzero = connection.execute(sa.select(tables.counts).where(tables.counts.c.n != 0)).all()
            return sorted(tuple(row) for row in nonzero), sorted(
                map(tuple, connection.execute(sa.select(tables.needs)))
            )

        before = kept()
        with connection.begin_nested() as undone:
            for sweep in connection.scalars(sa.select(tables.sweeps.c.id)).all():
                counts.recount_sweep(connection, sweep)
            assert before == kept(), "the counts are not those of the cells and stages"
            self._check_backlogs(connection)
            undone.rollback()

    @staticmethod
    def _check_backlogs(connection: sa.Connection) -> None:
        """Assert that the backlog of each open sweep is that of its open calls."""
        opened = sa.select(tables.sweeps.c.id).where(tables.sweeps.c.state.in_(OPEN))
        for sweep in connection.scalars(opened).all():

            def kept(sweep: str = sweep) -> list[tuple[Any, ...]]:
                rows = counts.backlogs(connection, [sweep]).get(sweep, [])
                found = [
                    (
                        row.kind,
                        row.level,
                        row.scale,
                        row.open,
                        *(pytest.approx(part, rel=1e-6, abs=1) for part in row[6:]),
                    )
                    for row in rows
                    if row.open
                ]
                return sorted(found, key=lambda item: item[:4])

            before = kept()
            counts.recount_backlog(connection, sweep)
            assert before == kept(), "the backlog of a sweep is not that of its open calls"

    def close(self) -> None:
        self.ledger.close()


def pages(ask: Callable[[Any], tuple[list[Any], Any]], first: Any) -> list[list[Any]]:
    found = []
    after = first
    while after is not None:
        items, after = ask(after)
        found.append(items)
    return found


def wait_until(condition: Callable[[], bool], within: float = 30.0) -> None:
    """Wait for a started scheduler to make the condition true."""
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def groups(count: int, **changes: Any) -> dict[str, Any]:
    """A sweep of this many calls of two cells each."""
    return {"axes": {"group": list(range(count)), "x": [1, 2]}, **changes}


def one_cell_groups(count: int, first: int = 0, **changes: Any) -> dict[str, Any]:
    """A sweep of this many calls of one cell each."""
    fixed = {"x": 1, **changes.get("fixed", {})}
    return {"axes": {"group": list(range(first, first + count))}, **changes, "fixed": fixed}


def quick(patch: pytest.MonkeyPatch, **values: float) -> None:
    """The scheduler without its pauses: a test decides when something happens."""
    settings: Mapping[str, float] = {"POLL_S": 0.0, "COMMIT_EVERY_S": 0.0, "COMMIT_PAUSE_S": 0.0, **values}
    for name, value in settings.items():
        patch.setattr(row_commits if hasattr(row_commits, name) else scheduler, name, value)
