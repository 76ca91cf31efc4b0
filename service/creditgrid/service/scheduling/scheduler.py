"""The scheduler: what is ready goes to the runner, and what comes back is noted, on one thread.

It keeps nothing that a restart needs: what is ready is asked of the ledger, and what it holds in memory (calls in
flight, rows not yet committed) is work that runs again. Where the ledger itself cannot be used, it waits until it can,
and goes on as after a restart.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Any

import pyarrow as pa
import sqlalchemy as sa
import structlog
from deltalake.exceptions import DeltaError

from creditgrid.core.experiments.registry import registry
from creditgrid.core.states import State
from creditgrid.core.task import Task
from creditgrid.core.wire import Activity
from creditgrid.service.ledger import tables
from creditgrid.service.ledger.ledger import Ledger
from creditgrid.service.ledger.tables import load_task
from creditgrid.service.results.table import Results
from creditgrid.service.scheduling.call_settings import parsed, resources, timeout_s
from creditgrid.service.scheduling.completion import Endings, tell
from creditgrid.service.scheduling.dispatch import Turns
from creditgrid.service.scheduling.in_flight import Flight, Flights, Recalled
from creditgrid.service.scheduling.retries import Failures
from creditgrid.service.scheduling.row_commits import Commits
from creditgrid.workers.artifacts import ArtifactStore
from creditgrid.workers.runner import Advanced, Call, Capacity, Failed, Finished, Lost, Message, Runner, Started

POLL_S = 0.2
LEDGER_PAUSE_S = 2.0
"""Between two tries to go on after the ledger could not be used."""
STOP_WAIT_S = 30.0
"""For the runner to tell the end of calls that were taken back because the ledger cannot be used."""

log = structlog.get_logger()


class Scheduler:
    """Owns the runner. What users ask comes through ``control``, which has a hand in ``flights`` and ``endings``."""

    def __init__(self, ledger: Ledger, results: Results, store: ArtifactStore, runner: Runner) -> None:
        self._ledger, self._results, self._runner = ledger, results, runner
        self.flights = Flights()
        self.endings = Endings(self.flights)
        self._commits = Commits(ledger, results, self._succeeded)
        self._failures = Failures(store, self.endings)
        self._turns = Turns(self.flights)
        self._inbox: deque[Message] = deque()  # what the runner told; a message stays until all it asks for is done
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._deadline = 0.0  # when stopping: how long calls in flight are waited for
        self._trouble: str | None = None
        self._died: str | None = None

    # -- life ------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Recover what an earlier process left, start the runner, and begin."""
        self.recover()
        self._runner.start()
        self._thread = threading.Thread(target=self._run, name="creditgrid-scheduler", daemon=True)
        self._thread.start()

    def stop(self, grace_s: float) -> None:
        """Submit nothing more, give calls that run ``grace_s`` seconds to end, and stop; a restart runs the rest."""
        self._deadline = time.monotonic() + grace_s
        self._stopping.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join()
        self._runner.stop()

    def wake(self) -> None:
        """There may be something to do."""
        self._wake.set()

    def problem(self) -> str | None:
        """Why sweeps do not advance, if something keeps them from it."""
        if self._died is not None:
            return f"the scheduler has ended: {self._died}; restart the service"
        return self._trouble or self._commits.trouble or self._runner.capacity().degraded

    def capacity(self) -> Capacity:
        """What the runner has."""
        return self._runner.capacity()

    def activities(self) -> dict[int, tuple[Activity, float]]:
        """The calls that are running, by id, with the seconds they have been at it."""
        return self.flights.activities()

    def recover(self) -> None:
        """Bring the ledger to a state from which everything open runs; ``commits`` says what becomes of batches."""
        with self._ledger.write() as connection:
            flying = connection.execute(
                sa.select(tables.calls).where(tables.calls.c.state.in_((State.QUEUED, State.RUNNING)))
            ).all()
            through = {row.id for row in flying if row.batch is not None and self._results.holds(row.batch)}
            keys = [task.key for call in through for task in tables.open_tasks(connection, call)]
            for piece in tables.chunks(self._results.diverged(keys)):
                connection.execute(tables.tasks.update().where(tables.tasks.c.key.in_(piece)).values(diverged=True))
            for row in flying:
                if row.id in through:
                    tables.move_call(connection, row.id, State.SUCCEEDED)
                    text = f"{row.size:,} {row.kind} done: their rows were written when the service ended"
                    self.endings.settle(connection, row.id, State.SUCCEEDED, "call.finished", text)
                else:
                    tables.move_call(connection, row.id, State.PENDING, batch=None)
            tables.hand_over_all(connection)
            tables.cancel_unneeded(connection, tables.calls_of_ended())
            if flying:
                log.info("recovered", calls=len(flying))

    # -- the loop --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._stopping.is_set() or (len(self.flights) and time.monotonic() < self._deadline):
                try:
                    self._step()
                except sa.exc.OperationalError as error:
                    self._wait_for_ledger(error)
            while self._commits.waiting:  # what is through is kept; what is in flight runs again
                self._commits.commit()
                if self._commits.trouble is not None:
                    break
        except Exception as error:  # the thread is about to end: say so where /readyz and a person will look
            self._died = f"{type(error).__name__}: {error}"
            log.exception("scheduler ended")

    def _step(self) -> None:
        self._wake.clear()
        submitted = self._let_go() if self._stopping.is_set() else self._submit_ready()
        self._stop_overdue()
        while self.flights.to_stop:
            call = next(iter(self.flights.to_stop))
            del self.flights.to_stop[call]
            self._runner.cancel(call)
        idle = not len(self.flights)
        # With nothing in flight only a wake-up can bring work, apart from calls that wait out their backoff.
        if idle and not submitted and not self._commits.due(idle=True):
            self._wake.wait(POLL_S)
        self._inbox.extend(self._runner.poll(0.0 if idle else POLL_S))
        while self._inbox:
            self._handle(self._inbox[0])
            self._inbox.popleft()
        if self._commits.due(idle=not len(self.flights)):
            self._commits.commit()

    def _submit_ready(self) -> int:
        if self._commits.full:  # while the table cannot be written rows do not pile up
            return 0
        now = time.time()
        with self._ledger.read() as connection:
            room = self._turns.room(self._runner.capacity())
            self._turns.make_way(connection, now, room)
            ready = self._turns.choose(connection, now, room)
        for row in ready:
            try:
                with self._ledger.write() as connection:
                    flight = self._board(connection, row)
                    if flight is not None:
                        self.flights.add(flight)
            except sa.exc.OperationalError:
                self.flights.end(row.id)  # it never came to the runner
                raise
            if flight is not None:
                self._runner.submit(flight.call)
        return len(ready)

    def _let_go(self) -> int:
        """When stopping: what no process has begun is not waited for."""
        for flight in self.flights.waiting():
            self.flights.recall(flight, Recalled.FOR_ANOTHER)
        return 0

    def _stop_overdue(self) -> None:
        now = time.monotonic()
        for flight in self.flights:
            if flight.overdue(now):
                self.flights.recall(flight, Recalled.OVERDUE)

    def _wait_for_ledger(self, error: sa.exc.OperationalError) -> None:
        """Forget what is in flight, and go on as after a restart once the ledger can be used again."""
        self._trouble = f"the ledger cannot be used: {error.orig or error}; sweeps go on once it can"
        log.error("ledger trouble", error=str(error.orig or error))
        left = {flight.call.id for flight in self.flights}
        for call in left:
            self.flights.end(call)
        self._commits.forget()
        self._quieten(left)
        while not self._stopping.wait(LEDGER_PAUSE_S):
            try:
                self.recover()
            except (sa.exc.OperationalError, OSError, DeltaError) as again:
                self._trouble = f"the ledger or the results cannot be used: {again}; sweeps go on once they can"
                continue
            self._trouble = None
            log.info("ledger is back")
            return

    def _quieten(self, left: set[int]) -> None:
        """Take these calls back from the runner, which would else still work on them when they are submitted again."""
        for call in left:
            self._runner.cancel(call)
        deadline = time.monotonic() + STOP_WAIT_S
        while True:
            while self._inbox:
                message = self._inbox.popleft()
                if isinstance(message, Lost):
                    left.clear()
                elif isinstance(message, Finished | Failed):
                    left.discard(message.call)
            if not left:
                return
            if time.monotonic() > deadline:
                raise RuntimeError(f"{len(left)} calls could not be stopped while the ledger could not be used")
            self._inbox.extend(self._runner.poll(POLL_S))

    # -- from the ledger to the runner -----------------------------------------------------------------------------

    def _board(self, connection: sa.Connection, row: sa.Row[Any]) -> Flight | None:
        """The call as the runner takes it, without the tasks that lost a parent; None if none is left or wanted."""
        if not tables.sweeps_of(connection, row.id):
            if tables.move_call(connection, row.id, State.CANCELLED):
                tables.settle_tasks(connection, row.id, State.CANCELLED)
            return None
        kind = registry().kinds.get(row.kind)
        if kind is None:
            text = f"this service knows no task kind {row.kind!r}: is its package installed?"
            if tables.move_call(connection, row.id, State.FAILED, error=text):
                self.endings.settle(connection, row.id, State.FAILED, "call.failed", text)
            return None
        tasks = self._with_parents(connection, row)
        if not tasks:
            tables.move_call(connection, row.id, State.SKIPPED)
            return None
        if not tables.move_call(connection, row.id, State.QUEUED):
            return None  # cancelled since it was read
        owner = tables.sweep_row(connection, row.sweep)
        assert owner is not None, "a call belongs to a sweep"
        spec = parsed(owner.spec)
        inputs = sorted({key for task in tasks for key in task.parents.values()})
        stamp = {"sweep": row.sweep}
        call = Call(row.id, row.kind, tasks, inputs, resources(kind, spec), row.attempt, stamp)
        return Flight(
            call,
            owner.id,
            owner.priority,
            spec.retry.max,
            spec.retry.backoff_s,
            timeout_s(kind, spec),
            Activity(call=row.id, kind=row.kind, tasks=len(tasks)),
        )

    def _with_parents(self, connection: sa.Connection, row: sa.Row[Any]) -> list[Task]:
        """The call's open tasks; those that a task below them has left without a parent are skipped."""
        tasks = [load_task(found.key, found.kind, found.payload) for found in tables.open_tasks(connection, row.id)]
        lost = tables.lost_inputs(connection, row.id)
        if not lost:
            return tasks
        orphans: dict[str, list[str]] = {}
        kept = []
        for task in tasks:
            blame = next((lost[key] for key in task.parents.values() if key in lost), None)
            if blame is None:
                kept.append(task)
            else:
                orphans.setdefault(blame, []).append(task.key)
        for blame, keys in orphans.items():
            text = f"{len(keys):,} {row.kind} skipped: a task that they need has no result"
            self.endings.settle(connection, row.id, State.SKIPPED, "call.skipped", text, keys=keys, blame=blame)
        return kept

    # -- what comes back -------------------------------------------------------------------------------------------

    def _handle(self, message: Message) -> None:
        if isinstance(message, Lost):
            self._lost(message.reason)
            return
        flight = self.flights.get(message.call)
        if flight is None:
            if isinstance(message, Finished | Failed):
                self.flights.end(message.call)  # it needs no stopping any more
            return  # cancelled, or told twice
        if isinstance(message, Advanced):
            flight.activity = flight.activity.model_copy(
                update={"done": message.done, "total": message.total, "note": message.note}
            )
        elif isinstance(message, Started):
            self._started(flight, message)
        elif isinstance(message, Finished):
            self._finished(message)
        else:
            with self._ledger.write() as connection:
                if self.flights.end(message.call) is not None:
                    self._failures.failed(connection, flight, message)

    def _started(self, flight: Flight, message: Started) -> None:
        flight.began = time.monotonic()
        with self._ledger.write() as connection:
            tables.move_call(connection, message.call, State.RUNNING, host=message.host)
            text = f"{len(flight.call.tasks):,} {flight.call.kind} started on {message.host}, {message.device}"
            for sweep in tables.sweeps_of(connection, message.call):
                tables.begin_sweep(connection, sweep)
                tell(connection, sweep, "call.started", text, call=message.call)

    def _finished(self, message: Finished) -> None:
        self._turns.learn(message.seconds)
        with self._ledger.write() as connection:
            flight = self.flights.end(message.call)
            if flight is None:
                return  # cancelled since
            if message.rows is None:
                self._succeeded(connection, message)
                return
            table = pa.ipc.open_stream(message.rows).read_all()
            if why := self._commits.misfit(table.schema):  # one such table would keep all others from the commit
                failed = Failed(message.call, why, "", transient=False, host=message.host)
                self._failures.failed(connection, flight, failed)
                return
        self._commits.add(message, table)

    def _succeeded(self, connection: sa.Connection, message: Finished) -> None:
        done = {"seconds": message.seconds, "host": message.host, "error": None}
        if not tables.move_call(connection, message.call, State.SUCCEEDED, **done):
            return  # cancelled meanwhile
        for key, size in message.sizes.items():
            connection.execute(tables.tasks.update().where(tables.tasks.c.key == key).values(bytes=size))
        for piece in tables.chunks(message.diverged):
            connection.execute(tables.tasks.update().where(tables.tasks.c.key.in_(piece)).values(diverged=True))
        row = connection.execute(sa.select(tables.calls).where(tables.calls.c.id == message.call)).one()
        text = f"{row.size:,} {row.kind} done in {message.seconds:.2f} s"
        if message.diverged:
            text += f"; {len(message.diverged):,} with numbers that are not finite"
        self.endings.settle(connection, message.call, State.SUCCEEDED, "call.finished", text)

    def _lost(self, reason: str) -> None:
        """Everything in flight goes back to pending."""
        with self._ledger.write() as connection:
            flights = list(self.flights)
            log.warning("runner lost", reason=reason, calls=len(flights))
            for sweep in {sweep for flight in flights for sweep in tables.sweeps_of(connection, flight.call.id)}:
                tell(connection, sweep, "runner.lost", f"{reason}; what was in flight runs again")
            for flight in flights:
                self.flights.end(flight.call.id)
                self._failures.lost(connection, flight, reason)
