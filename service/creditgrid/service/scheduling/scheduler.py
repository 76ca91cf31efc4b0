"""The scheduler: ready calls go to the runner, and the ledger notes what comes back, on one thread.

It keeps nothing that a restart needs: the ledger knows what is ready, and what memory holds (calls in flight, rows that
are not committed) is work that runs again. Where the ledger cannot be used, the scheduler waits until it can, and
continues as after a restart.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import replace
from typing import Any

import pyarrow as pa
import sqlalchemy as sa
import structlog
from deltalake.exceptions import DeltaError

from creditgrid.core.experiments.registry import registry
from creditgrid.core.packed_tasks import PackedTasks, parents_in
from creditgrid.core.wire import Activity
from creditgrid.core.work import Work
from creditgrid.service.call_settings import parsed, resources, timeout_s
from creditgrid.service.ledger import transitions
from creditgrid.service.ledger.counts import sweeps_needing
from creditgrid.service.ledger.events import emit_to_all
from creditgrid.service.ledger.ledger import Ledger
from creditgrid.service.ledger.ownership import hand_over_all
from creditgrid.service.ledger.queries import calls_in_flight, lost_inputs, open_tasks, sweep_row
from creditgrid.service.prediction.forecast import InProgress
from creditgrid.service.results.curves import Curves
from creditgrid.service.results.table import Results
from creditgrid.service.scheduling.completion import Completion
from creditgrid.service.scheduling.curve_commits import CurveCommits
from creditgrid.service.scheduling.dispatch import Dispatcher
from creditgrid.service.scheduling.in_flight import InFlight, Recall, SubmittedCall
from creditgrid.service.scheduling.retries import Retries
from creditgrid.service.scheduling.row_commits import RowCommits
from creditgrid.workers.artifacts import ArtifactStore
from creditgrid.workers.runner import Advanced, Call, Capacity, Failed, Finished, Lost, Message, Runner, Started

POLL_S = 0.2
SHORT_POLL_S = 0.02
"""While a finished call waits for its points."""
LEDGER_PAUSE_S = 2.0
"""Between two tries to use the ledger again."""
CANCEL_WAIT_S = 30.0
"""How long the runner may take to end calls that are taken back because the ledger cannot be used."""

log = structlog.get_logger()


class Scheduler:
    """Owns the runner. ``control``, which users call, may cancel calls in flight and finish sweeps."""

    def __init__(self, ledger: Ledger, results: Results, curves: Curves, store: ArtifactStore, runner: Runner) -> None:
        self._ledger, self._results, self._runner = ledger, results, runner
        self.in_flight = InFlight()
        self.completion = Completion(self.in_flight)
        self.commits = RowCommits(ledger, results, self._succeeded)
        self.curves = CurveCommits(ledger, curves, self._succeeded)
        self._retries = Retries(store, self.completion)
        self._dispatcher = Dispatcher(self.in_flight)
        self._inbox: deque[Message] = deque()  # a message stays until everything that follows from it is written
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._deadline = 0.0  # when a stop no longer waits for calls in flight
        self._trouble: str | None = None
        self._died: str | None = None

    # -- life ------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Recover what an earlier process left, start the runner, and start to schedule."""
        self.recover()
        self._runner.start()
        self._thread = threading.Thread(target=self._run, name="creditgrid-scheduler", daemon=True)
        self._thread.start()

    def stop(self, grace_s: float) -> None:
        """Submit nothing more, give running calls ``grace_s`` seconds to end, and stop; a restart runs the rest."""
        self._deadline = time.monotonic() + grace_s
        self._stopping.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join()
        self._runner.stop()

    def wake(self) -> None:
        """Look for work now."""
        self._wake.set()

    def problem(self) -> str | None:
        """Why sweeps do not advance, or None."""
        if self._died is not None:
            return f"the scheduler has ended: {self._died}; restart the service"
        return self._trouble or self.commits.trouble or self.curves.trouble or self._runner.capacity().degraded

    def capacity(self) -> Capacity:
        """The CPUs, GPUs and nodes of the runner."""
        return self._runner.capacity()

    def activities(self) -> dict[int, tuple[Activity, float]]:
        """The running calls by id, with the seconds that each has run."""
        return self.in_flight.activities()

    def running(self) -> dict[int, InProgress]:
        """What is known of the time of each running call, by its id."""
        return self.in_flight.running()

    def recover(self) -> None:
        """Finish interrupted calls whose rows are in the results table, and make the others run again."""
        with self._ledger.write() as connection:
            interrupted = calls_in_flight(connection)
            written = {row.id for row in interrupted if row.batch is not None and self._results.holds(row.batch)}
            keys = [key for call in written for key, _, _ in open_tasks(connection, call)]
            diverged = self._results.diverged(keys)
            for row in interrupted:
                if row.id in written:
                    how = ": their rows were written when the service ended"
                    sweeps = transitions.finish_call(connection, row.id, how)
                    self.completion.tasks_ended(connection, sweeps)
                else:
                    transitions.requeue_call(connection, row.id, batch=None)
            transitions.mark_diverged(connection, diverged)
            hand_over_all(connection)
            transitions.cancel_calls_of_ended(connection)
            if interrupted:
                log.info("recovered", calls=len(interrupted))

    # -- the loop --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._stopping.is_set() or (len(self.in_flight) and time.monotonic() < self._deadline):
                try:
                    self.step()
                except sa.exc.OperationalError as error:
                    self._wait_for_ledger(error)
            written = not self.curves.waiting or self.curves.commit()
            while self.commits.waiting and written:  # rows of finished calls are kept; what is in flight runs again
                self.commits.commit()
                if self.commits.trouble is not None:
                    break
        except Exception as error:  # the thread ends: /readyz and the log report it
            self._died = f"{type(error).__name__}: {error}"
            log.exception("scheduler ended")

    def step(self) -> None:
        """One round: submit what is ready, handle what came back, commit rows that are due."""
        self._wake.clear()
        submitted = self._drain() if self._stopping.is_set() else self._submit_ready()
        self._recall_overdue()
        while self.in_flight.to_cancel:
            call = next(iter(self.in_flight.to_cancel))
            del self.in_flight.to_cancel[call]
            self._runner.cancel(call)
        idle = not len(self.in_flight)
        # With nothing in flight only a wake-up can bring work, apart from calls that wait out their backoff.
        if idle and not submitted and not (self._rows_due(idle=True) or self.curves.due(idle=True)):
            self._wake.wait(POLL_S)
        self._inbox.extend(self._runner.poll(0.0 if idle else SHORT_POLL_S if self.curves.awaited else POLL_S))
        while self._inbox:
            self._handle(self._inbox[0])
            self._inbox.popleft()
        idle = not len(self.in_flight)
        if self.curves.due(idle=idle, hungry=len(self.in_flight) < self._runner.capacity().cpu):
            self.curves.commit()
        if self._rows_due(idle=idle) and (not self.curves.owes(self.commits.calls()) or self.curves.commit()):
            self.commits.commit()

    def _rows_due(self, *, idle: bool) -> bool:
        """Whether it is time to commit rows. The points of their calls come first, and may have to wait."""
        return self.commits.due(idle=idle) and not (self.curves.resting and self.curves.owes(self.commits.calls()))

    def _submit_ready(self) -> int:
        if self.commits.full or self.curves.full:  # while the table cannot be written, rows do not pile up
            return 0
        now = time.time()
        with self._ledger.read() as connection:
            slots = self._dispatcher.free_slots(self._runner.capacity())
            self._dispatcher.preempt(connection, now, slots)
            ready = self._dispatcher.choose(connection, now, slots)
        for row in ready:
            try:
                with self._ledger.write() as connection:
                    submitted = self._build_call(connection, row)
                    if submitted is not None:
                        self.in_flight.add(submitted)
            except sa.exc.OperationalError:
                self.in_flight.remove(row.id)  # the runner has not seen it
                raise
            if submitted is not None:
                self._runner.submit(submitted.call)
        return len(ready)

    def _drain(self) -> int:
        """When stopping: take back what no process has started."""
        for submitted in self.in_flight.waiting():
            self.in_flight.recall(submitted, Recall.NOT_STARTED)
        return 0

    def _recall_overdue(self) -> None:
        now = time.monotonic()
        for submitted in self.in_flight:
            if submitted.overdue(now):
                self.in_flight.recall(submitted, Recall.OVERDUE)

    def _wait_for_ledger(self, error: sa.exc.OperationalError) -> None:
        """Forget what is in flight, and continue as after a restart once the ledger can be used again."""
        self._trouble = _describe(error)
        log.error("ledger trouble", error=str(error.orig or error))
        left = {submitted.call.id for submitted in self.in_flight}
        for call in left:
            self.in_flight.remove(call)
        self.commits.forget()
        self.curves.forget()
        self._cancel_and_wait(left)
        while not self._stopping.wait(LEDGER_PAUSE_S):
            try:
                self.recover()
            except (sa.exc.OperationalError, OSError, DeltaError) as again:
                self._trouble = _describe(again)
                continue
            self._trouble = None
            log.info("ledger is back")
            return

    def _cancel_and_wait(self, left: set[int]) -> None:
        """Take these calls back and wait for their end: the runner must not compute a call twice at once."""
        for call in left:
            self._runner.cancel(call)
        deadline = time.monotonic() + CANCEL_WAIT_S
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

    def _build_call(self, connection: sa.Connection, row: sa.Row[Any]) -> SubmittedCall | None:
        """The call as the runner takes it, without tasks that lost a parent; None if no task is left or needed."""
        if not sweeps_needing(connection, row.id, hidden=True):
            transitions.cancel_call(connection, row.id)
            return None
        kind = registry().kinds.get(row.kind)
        if kind is None:
            text = f"this service knows no task kind {row.kind!r}: is its package installed?"
            sweeps = transitions.fail_call(connection, row.id, text, error=text)
            self.completion.tasks_ended(connection, sweeps or (), failed=True)
            return None
        tasks = self._with_parents(connection, row)
        if not tasks:
            transitions.skip_call(connection, row.id)
            return None
        if not transitions.queue_call(connection, row.id):
            return None  # cancelled since it was chosen
        owner = sweep_row(connection, row.sweep)
        assert owner is not None, "a call belongs to a sweep"
        spec = parsed(owner.spec)
        inputs = sorted(tasks.parents())
        given = resources(kind, spec)
        return SubmittedCall(
            Call(row.id, row.kind, tasks, inputs, given, row.attempt, {"sweep": row.sweep}, row.log or ""),
            owner.id,
            owner.priority,
            spec.retry.max,
            spec.retry.backoff_s,
            timeout_s(kind, spec),
            Activity(call=row.id, kind=row.kind, tasks=len(tasks)),
            owner.owner,
            work=None if row.launches is None else Work(row.launches, row.flops, row.elements),
            level=row.level,
            scale=row.scale,
        )

    def _with_parents(self, connection: sa.Connection, row: sa.Row[Any]) -> PackedTasks:
        """The call's open tasks that have all their parents; the others are skipped."""
        texts = open_tasks(connection, row.id)
        packed = PackedTasks.pack(row.kind, texts)
        lost = lost_inputs(connection, row.id)
        if packed.parents().isdisjoint(lost):
            return packed
        orphans: dict[str, list[str]] = {}
        kept = []
        for key, params, shared in texts:
            blame = next((lost[parent] for parent in parents_in(shared).values() if parent in lost), None)
            if blame is None:
                kept.append((key, params, shared))
            else:
                orphans.setdefault(blame, []).append(key)
        for blame, keys in orphans.items():
            text = f"{len(keys):,} {row.kind} skipped: a task that they need has no result"
            self.completion.tasks_ended(connection, transitions.skip_tasks(connection, row.id, keys, blame, text))
        return PackedTasks.pack(row.kind, kept)

    # -- what comes back -------------------------------------------------------------------------------------------

    def _handle(self, message: Message) -> None:
        if isinstance(message, Lost):
            self._lost(message.reason)
            return
        submitted = self.in_flight.get(message.call)
        if submitted is None:
            if isinstance(message, Finished | Failed):
                self.in_flight.remove(message.call)  # it has ended, so it is not cancelled
            return  # cancelled, or reported twice
        if isinstance(message, Advanced):
            progress = {"done": message.done, "total": message.total, "note": message.note}
            submitted.activity = submitted.activity.model_copy(update=progress)
            self.curves.add(submitted.call, message.points)
            submitted.advanced(message.done)
        elif isinstance(message, Started):
            submitted.started = time.monotonic()
            text = f"{len(submitted.call.tasks):,} {submitted.call.kind} started on {message.host}, {message.device}"
            with self._ledger.write(durable=False) as connection:  # a call that counts as queued ends as well
                transitions.start_call(connection, message.call, message.host, text)
        elif isinstance(message, Finished):
            self._finished(message)
        else:
            self._failed(submitted, message)

    def _failed(self, submitted: SubmittedCall, message: Failed) -> None:
        self.curves.add(submitted.call, message.points)
        if message.stored and self.curves.owes([message.call]) and not self.curves.commit():
            message = replace(message, stored=())  # tasks succeed after their points, in the next attempt
        with self._ledger.write() as connection:
            if self.in_flight.remove(message.call) is not None:
                self._retries.call_failed(connection, submitted, message)

    def _finished(self, message: Finished) -> None:
        self._dispatcher.note_duration(message.seconds)
        with self._ledger.write() as connection:
            submitted = self.in_flight.remove(message.call)
            if submitted is None:
                return  # cancelled since
            self.curves.add(submitted.call, message.points)
            if message.rows is None:
                if self.curves.owes([message.call]):
                    self.curves.finish(message)
                else:
                    self._succeeded(connection, message)
                return
            table = pa.ipc.open_stream(message.rows).read_all()
            if why := self.commits.misfit(table.schema):  # such a table would block the commit of all others
                failed = Failed(message.call, why, "", transient=False, host=message.host)
                self._retries.call_failed(connection, submitted, failed)
                return
        self.commits.add(message, table)

    def _succeeded(self, connection: sa.Connection, message: Finished) -> None:
        how = f" in {message.seconds:.2f} s"
        if message.diverged:
            how += f"; {len(message.diverged):,} with numbers that are not finite"
        sweeps = transitions.finish_call(
            connection,
            message.call,
            how,
            seconds=message.seconds,
            host=message.host,
            device=message.device,
            sizes=message.sizes,
        )
        transitions.mark_diverged(connection, message.diverged)
        self.completion.tasks_ended(connection, sweeps)

    def _lost(self, reason: str) -> None:
        """Everything in flight goes back to pending."""
        with self._ledger.write() as connection:
            submitted = list(self.in_flight)
            log.warning("runner lost", reason=reason, calls=len(submitted))
            affected = {sweep for item in submitted for sweep in sweeps_needing(connection, item.call.id)}
            emit_to_all(connection, affected, "runner.lost", f"{reason}; calls in flight run again")
            for item in submitted:
                self.in_flight.remove(item.call.id)
                self._retries.call_lost(connection, item, reason)


def _describe(error: Exception) -> str:
    """What ``problem`` says while the scheduler waits."""
    if isinstance(error, sa.exc.OperationalError):
        return f"the ledger cannot be used: {error.orig or error}; sweeps continue once it can"
    return f"the results cannot be used: {error}; sweeps continue once they can"
