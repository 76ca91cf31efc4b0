"""The scheduler: the sole writer of states. Ready → submit → harvest → commit, on one thread.

It keeps nothing that a restart needs: what is ready is asked of the ledger, and what it holds in memory (calls in
flight, rows not yet committed) is work that runs again. Rows are committed about once a second, in three steps that can
each be the last before a crash:

1. the ledger notes which calls the next batch holds,
2. the batch is appended to the results table, marked with its number,
3. the ledger notes the calls and their cells as succeeded.

After a restart a call with a batch number is succeeded if the table holds that batch, and runs again if not.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import sqlalchemy as sa
import structlog
from deltalake.exceptions import DeltaError

from creditgrid.core.errors import ConflictError, Fault, NotFoundError, SpecError
from creditgrid.core.fingerprint import canonical_json
from creditgrid.core.registry import registry
from creditgrid.core.rows import schema
from creditgrid.core.spec import SweepSpec
from creditgrid.core.states import FINISHED, WITHOUT_RESULT, State
from creditgrid.core.task import Resources
from creditgrid.core.wire import TERMINAL_EVENT, Activity
from creditgrid.service import ledger as db
from creditgrid.service.ledger import Ledger
from creditgrid.service.plan_writer import PlanWriter, load_task
from creditgrid.service.planning import MEASURE, Planner
from creditgrid.service.results import Results
from creditgrid.workers.runner import Advanced, Call, Capacity, Failed, Finished, Lost, Message, Runner, Started

WINDOW = 64
"""Calls in flight: enough that no core waits, few enough that an urgent sweep overtakes soon."""
COMMIT_EVERY_S = 1.0
COMMIT_PAUSE_S = 4.0
"""Further seconds before the next try after a commit that failed."""
POLL_S = 0.2
ROWS_KEPT = 200_000
"""Rows waiting for their commit; above it the batch is committed at once."""
LONGEST_PAUSE_S = 600.0
"""Between two attempts of a call; up to here the pause doubles."""
TEXT_KEPT = 20_000
"""Characters of an error or traceback that the ledger keeps."""

log = structlog.get_logger()


@dataclass(slots=True)
class _Flight:
    """A call in flight: what is in memory of it."""

    call: Call
    retries: int
    backoff_s: float
    activity: Activity
    began: float | None = None


@dataclass(slots=True)
class _Batch:
    """Rows of finished calls that wait for their commit."""

    messages: list[Finished] = field(default_factory=list)
    tables: list[pa.Table] = field(default_factory=list)
    rows: int = 0


class Scheduler:
    """Owns the runner and all states; submit, cancel and retry may be called from any thread."""

    def __init__(self, ledger: Ledger, planner: Planner, results: Results, runner: Runner) -> None:
        self._ledger, self._planner, self._results, self._runner = ledger, planner, results, runner
        self._flights: dict[int, _Flight] = {}  # changed within a ledger transaction only: cancel may come meanwhile
        self._batch = _Batch()
        self._prepared: tuple[int, list[tuple[Finished, pa.Table]]] | None = None  # a batch whose commit has begun
        self._committed = 0.0
        self._trouble: str | None = None
        self._to_cancel: deque[int] = deque()
        # Planning and writing a sweep is one step: two sweeps that share tasks cannot both think they are the first.
        self._submitting = threading.Lock()
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._deadline = 0.0  # when stopping: how long calls in flight are waited for
        self._died: str | None = None

    # -- life ------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Recover what an earlier process left, start the runner, and begin."""
        self.recover()
        self._runner.start()
        self._thread = threading.Thread(target=self._run, name="creditgrid-scheduler", daemon=True)
        self._thread.start()

    def stop(self, grace_s: float) -> None:
        """Submit nothing more, give calls in flight ``grace_s`` seconds to end, and stop; a restart runs the rest."""
        self._deadline = time.monotonic() + grace_s
        self._stopping.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join()
        self._runner.stop()

    def problem(self) -> str | None:
        """Why sweeps do not advance, if something keeps them from it."""
        if self._died is not None:
            return f"the scheduler has ended: {self._died}; restart the service"
        return self._trouble or self._runner.capacity().degraded

    def capacity(self) -> Capacity:
        """What the runner has."""
        return self._runner.capacity()

    def activities(self) -> dict[int, tuple[Activity, float]]:
        """The calls that are running, by id, with the seconds they have been at it."""
        now = time.monotonic()
        flights = list(self._flights.items())
        return {call: (flight.activity, now - flight.began) for call, flight in flights if flight.began is not None}

    # -- what users ask for ----------------------------------------------------------------------------------------

    def submit(self, document: Any, idempotency: tuple[str, str] | None = None) -> tuple[str, bool]:
        """Validate, plan and write a sweep; returns its id and whether it is new.

        Args:
            idempotency: a key the client chose, and a digest of the request's body: the same pair again returns the
                first sweep.

        Raises:
            SpecError: the spec is refused; nothing was written.
            ConflictError: the idempotency key came before with another body.
        """
        with self._submitting:
            if idempotency is not None and (earlier := self._replayed(*idempotency)) is not None:
                return earlier, False
            spec, grid, plan = self._planner.prepare(document)
            if why := self._misfit(schema(grid.experiment)):
                raise SpecError([Fault(f"the experiment {spec.experiment!r} cannot be used: {why}", "/experiment")])
            sweep = f"s{int(time.time()):08x}{secrets.token_hex(4)}"
            with self._ledger.write() as connection:
                seq = connection.execute(
                    db.sweeps.insert().values(
                        id=sweep,
                        name=spec.name,
                        experiment=spec.experiment,
                        state=State.PENDING,
                        priority=spec.priority,
                        spec=json.dumps(document),
                        cells=0,
                        created_at=time.time(),
                    )
                ).inserted_primary_key[0]  # type: ignore[index]
                if idempotency is not None:
                    connection.execute(
                        db.idempotency.insert().values(key=idempotency[0], body=idempotency[1], sweep=sweep)
                    )
                total = PlanWriter(connection, sweep, int(seq), spec).write(plan)
                connection.execute(db.sweeps.update().where(db.sweeps.c.id == sweep).values(cells=total))
                self._tell(connection, sweep, "sweep.created", f"{spec.name}: {total:,} cells of {spec.experiment}")
                self._finish_if_through(connection, sweep)
        self._wake.set()
        log.info("sweep submitted", sweep=sweep, name=spec.name, cells=total)
        return sweep, True

    def cancel(self, sweep: str) -> None:
        """Stop a sweep: finished rows stay, and what another sweep needs runs on. A cancelled sweep is left as it is.

        Raises:
            NotFoundError: for an unknown sweep.
            ConflictError: for a sweep that has ended otherwise.
        """
        with self._submitting, self._ledger.write() as connection:
            state = self._state(connection, sweep)
            if state is State.CANCELLED:
                return
            if state.finished:
                raise ConflictError(f"sweep {sweep} has ended ({state}): there is nothing to cancel")
            self._end_early(connection, sweep, State.CANCELLED, "cancelled")
        self._wake.set()

    def retry(self, sweep: str) -> int:
        """Begin the failed, skipped and cancelled cells of an ended sweep anew; returns how many there are.

        Raises:
            NotFoundError: for an unknown sweep.
            ConflictError: while the sweep runs, or when every cell has its result.
        """
        with self._submitting:
            with self._ledger.read() as connection:
                state = self._state(connection, sweep)
                row = connection.execute(sa.select(db.sweeps).where(db.sweeps.c.id == sweep)).one()
                redo = set(
                    connection.scalars(
                        sa.select(db.cells.c.idx).where(db.cells.c.sweep == sweep, db.cells.c.state.in_(WITHOUT_RESULT))
                    )
                )
            if not state.finished:
                raise ConflictError(f"sweep {sweep} is {state}: cancel it or let it end before a retry")
            if not redo:
                raise ConflictError(f"every cell of sweep {sweep} has its result: there is nothing to retry")
            spec, _, plan = self._planner.prepare(json.loads(row.spec))
            with self._ledger.write() as connection:
                connection.execute(
                    db.sweeps.update().where(db.sweeps.c.id == sweep).values(state=State.PENDING, finished_at=None)
                )
                PlanWriter(connection, sweep, row.seq, spec, redo=redo).write(plan)
                self._tell(connection, sweep, "sweep.retried", f"{len(redo):,} cells begin anew")
                self._finish_if_through(connection, sweep)
        self._wake.set()
        return len(redo)

    # -- recovery --------------------------------------------------------------------------------------------------

    def recover(self) -> None:
        """Bring the ledger to a state from which everything open runs: see the module's text on batches."""
        with self._ledger.write() as connection:
            flying = connection.execute(
                sa.select(db.calls).where(db.calls.c.state.in_((State.QUEUED, State.RUNNING)))
            ).all()
            for row in flying:
                if row.batch is not None and self._results.holds(row.batch):
                    db.move_call(connection, row.id, State.SUCCEEDED)
                    self._settle(connection, row.id, State.SUCCEEDED)
                else:
                    db.move_call(connection, row.id, State.PENDING, batch=None)
            if flying:
                log.info("recovered", calls=len(flying))

    # -- the loop --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._stopping.is_set() or (self._flights and time.monotonic() < self._deadline):
                self._step()
            while self._batch.messages or self._prepared:  # what is through is kept; what is in flight runs again
                self._commit()
                if self._trouble is not None:
                    break
        except Exception as error:  # the thread is about to end: say so where /readyz and a person will look
            self._died = f"{type(error).__name__}: {error}"
            log.exception("scheduler ended")

    def _step(self) -> None:
        self._wake.clear()
        submitted = 0 if self._stopping.is_set() else self._submit_ready()
        # With nothing in flight only a wake-up can bring work, apart from calls that wait out their backoff.
        if not self._flights and not submitted and not self._commit_is_due():
            self._wake.wait(POLL_S)
        messages = self._runner.poll(POLL_S if self._flights else 0.0)
        for message in messages:
            self._handle(message)
        while self._to_cancel:
            self._runner.cancel(self._to_cancel.popleft())
        if self._commit_is_due():
            self._commit()

    def _commit_is_due(self) -> bool:
        since = time.monotonic() - self._committed
        if self._prepared is not None:
            return since >= 0
        soon = since >= COMMIT_EVERY_S or self._batch.rows >= ROWS_KEPT or (not self._flights and since >= 0)
        return bool(self._batch.messages) and soon

    def _submit_ready(self) -> int:
        room = WINDOW - len(self._flights)
        if room <= 0 or self._batch.rows >= ROWS_KEPT:  # while the table cannot be written rows do not pile up
            return 0
        with self._ledger.read() as connection:
            ready = db.ready_calls(connection, time.time(), room)
        for row in ready:
            with self._ledger.write() as connection:
                flight = self._board(connection, row)
                if flight is not None:
                    self._flights[row.id] = flight
            if flight is not None:
                self._runner.submit(flight.call)
        return len(ready)

    def _board(self, connection: sa.Connection, row: sa.Row[Any]) -> _Flight | None:
        """The call as the runner takes it, without the tasks that lost a parent; None if none is left or wanted."""
        if not db.sweeps_of(connection, row.id):
            if db.move_call(connection, row.id, State.CANCELLED):
                db.settle_tasks(connection, row.id, State.CANCELLED)
            return None
        kind = registry().kinds.get(row.kind)
        if kind is None:
            text = f"this service knows no task kind {row.kind!r}: is its package installed?"
            if db.move_call(connection, row.id, State.FAILED, error=text):
                self._settle(connection, row.id, State.FAILED, "call.failed", text)
            return None
        tasks = [
            load_task(found.key, found.kind, found.payload)
            for found in connection.execute(
                sa.select(db.tasks)
                .where(db.tasks.c.call == row.id, db.tasks.c.state == State.PENDING)
                .order_by(db.tasks.c.key)
            )
        ]
        lost = set(
            connection.scalars(
                sa.select(db.waits.c.key)
                .join(db.tasks, db.tasks.c.key == db.waits.c.key)
                .where(db.waits.c.call == row.id, db.tasks.c.state.in_(WITHOUT_RESULT))
            )
        )
        orphans = {task.key for task in tasks if lost and lost & set(task.parents.values())}
        if orphans:
            db.settle_tasks(connection, row.id, State.SKIPPED, orphans)
            for sweep in db.sweeps_of(connection, row.id):
                text = f"{len(orphans):,} {row.kind} skipped: a task that they need has no result"
                self._tell(connection, sweep, "call.skipped", text, call=row.id)
        tasks = [task for task in tasks if task.key not in orphans]
        if not tasks:
            db.move_call(connection, row.id, State.SKIPPED if orphans else State.CANCELLED)
            self._finish_sweeps(connection, row.id)
            return None
        if not db.move_call(connection, row.id, State.QUEUED):
            return None  # cancelled since it was read
        owner = connection.execute(sa.select(db.sweeps).where(db.sweeps.c.id == row.sweep)).one()
        spec = SweepSpec.model_validate(json.loads(owner.spec))
        experiment = registry().experiments.get(spec.experiment)  # None once its package is gone, and its stages stay
        measures = experiment is not None and kind is experiment.measure
        asked = spec.resources.get(MEASURE if measures else row.kind)
        resources = Resources(
            kind.resources.cpu if asked is None or asked.cpu is None else asked.cpu,
            kind.resources.gpu if asked is None or asked.gpu is None else asked.gpu,
        )
        inputs = sorted({key for task in tasks for key in task.parents.values()})
        call = Call(row.id, row.kind, tasks, inputs, resources, row.attempt, {"sweep": row.sweep})
        activity = Activity(call=row.id, kind=row.kind, tasks=len(tasks))
        return _Flight(call, spec.retry.max, spec.retry.backoff_s, activity)

    # -- what comes back -------------------------------------------------------------------------------------------

    def _handle(self, message: Message) -> None:
        if isinstance(message, Lost):
            self._lost(message.reason)
            return
        flight = self._flights.get(message.call)
        if flight is None:
            return  # cancelled, or told twice
        if isinstance(message, Advanced):
            flight.activity = flight.activity.model_copy(
                update={"done": message.done, "total": message.total, "note": message.note}
            )
        elif isinstance(message, Started):
            flight.began = time.monotonic()
            with self._ledger.write() as connection:
                db.move_call(connection, message.call, State.RUNNING, host=message.host)
                text = f"{_count(flight.call)} started on {message.host}, {message.device}"
                for sweep in db.sweeps_of(connection, message.call):
                    connection.execute(
                        db.sweeps.update()
                        .where(db.sweeps.c.id == sweep, db.sweeps.c.state == State.PENDING)
                        .values(state=State.RUNNING)
                    )
                    self._tell(connection, sweep, "call.started", text, call=message.call)
        elif isinstance(message, Finished):
            self._finished(message)
        else:
            with self._ledger.write() as connection:
                if self._flights.pop(message.call, None) is not None:
                    self._failed(connection, flight, message)

    def _finished(self, message: Finished) -> None:
        with self._ledger.write() as connection:
            flight = self._flights.pop(message.call, None)
            if flight is None:
                return  # cancelled since
            if message.rows is None:
                self._succeeded(connection, message)
                return
            table = pa.ipc.open_stream(message.rows).read_all()
            if why := self._misfit(table.schema):  # one such table would keep the rows of all others from the commit
                self._failed(connection, flight, Failed(message.call, why, "", transient=False, host=message.host))
                return
        self._batch.messages.append(message)
        self._batch.tables.append(table)
        self._batch.rows += table.num_rows

    def _misfit(self, rows: pa.Schema) -> str | None:
        """Why such rows cannot join the results table, if it can be read; if not, the commit says so."""
        try:
            return self._results.misfit(rows)
        except (OSError, DeltaError):
            return None

    def _succeeded(self, connection: sa.Connection, message: Finished) -> None:
        if not db.move_call(
            connection, message.call, State.SUCCEEDED, seconds=message.seconds, host=message.host, error=None
        ):
            return  # cancelled meanwhile
        for key, size in message.sizes.items():
            connection.execute(db.tasks.update().where(db.tasks.c.key == key).values(bytes=size))
        for piece in db.chunks(message.diverged):
            connection.execute(db.tasks.update().where(db.tasks.c.key.in_(piece)).values(diverged=True))
        row = connection.execute(sa.select(db.calls).where(db.calls.c.id == message.call)).one()
        text = f"{row.size:,} {row.kind} done in {message.seconds:.2f} s"
        if message.diverged:
            text += f"; {len(message.diverged):,} with numbers that are not finite"
        self._settle(connection, message.call, State.SUCCEEDED, "call.finished", text)

    def _failed(self, connection: sa.Connection, flight: _Flight, message: Failed) -> None:
        """Try again after a pause that doubles if the machine was to blame and attempts are left; else end the call."""
        call = flight.call
        error, trace = message.error.strip()[:TEXT_KEPT] or "failed", message.traceback[-TEXT_KEPT:]
        first = error.splitlines()[0]
        db.settle_tasks(connection, call.id, State.SUCCEEDED, message.stored)
        if message.transient and call.attempt <= flight.retries:
            pause = min(flight.backoff_s * 2 ** min(call.attempt - 1, 20), LONGEST_PAUSE_S)
            again = {"attempt": call.attempt + 1, "not_before": time.time() + pause, "error": error, "traceback": trace}
            if db.move_call(connection, call.id, State.PENDING, **again):
                text = f"{_count(call)} failed ({first}); attempt {call.attempt + 1} in {pause:g} s"
                for sweep in db.sweeps_of(connection, call.id):
                    self._tell(connection, sweep, "call.retried", text, call=call.id, attempt=call.attempt + 1)
        elif db.move_call(connection, call.id, State.FAILED, error=error, traceback=trace, host=message.host or ""):
            log.warning("call failed", call=call.id, kind=call.kind, error=first)
            self._settle(connection, call.id, State.FAILED, "call.failed", f"{_count(call)} failed: {first}")

    def _lost(self, reason: str) -> None:
        """Everything in flight goes back to pending; an attempt is counted only against calls that were running."""
        with self._ledger.write() as connection:
            flights, self._flights = self._flights, {}
            log.warning("runner lost", reason=reason, calls=len(flights))
            for sweep in {sweep for call in flights for sweep in db.sweeps_of(connection, call)}:
                self._tell(connection, sweep, "runner.lost", f"{reason}; what was in flight runs again")
            for flight in flights.values():
                if flight.began is None:
                    db.move_call(connection, flight.call.id, State.PENDING)
                else:  # one that brings the cluster down whenever it runs must come to an end
                    self._failed(connection, flight, Failed(flight.call.id, reason, "", transient=True))

    # -- commits ---------------------------------------------------------------------------------------------------

    def _commit(self) -> None:
        """Commit the batch; when the table cannot be written, keep it and try again with the same number."""
        if self._prepared is None:
            self._prepared = self._prepare_batch()
        number, wanted = self._prepared
        try:
            if wanted:
                self._results.append(number, [table for _, table in wanted])
        except (OSError, DeltaError) as error:
            # Nothing is lost: the rows stay here, and if the service dies the calls run again.
            self._committed = time.monotonic() + COMMIT_PAUSE_S
            self._trouble = f"rows cannot be written to the results table: {error}"
            log.error("commit failed", batch=number, error=str(error))
            return
        if wanted:
            with self._ledger.write() as connection:
                for message, _ in wanted:
                    self._succeeded(connection, message)
        self._prepared, self._trouble = None, None
        self._committed = time.monotonic()

    def _prepare_batch(self) -> tuple[int, list[tuple[Finished, pa.Table]]]:
        """Number the waiting rows and note in the ledger which calls they end."""
        batch, self._batch = self._batch, _Batch()
        with self._ledger.write() as connection:
            number = int(connection.scalar(sa.select(db.meta.c.value).where(db.meta.c.name == "batch")) or 0) + 1
            connection.execute(db.meta.delete().where(db.meta.c.name == "batch"))
            connection.execute(db.meta.insert().values(name="batch", value=str(number)))
            wanted = []
            for message, table in zip(batch.messages, batch.tables, strict=True):
                noted = connection.execute(
                    db.calls.update()
                    .where(db.calls.c.id == message.call, db.calls.c.state.in_((State.QUEUED, State.RUNNING)))
                    .values(batch=number)
                )
                if noted.rowcount == 1:  # a call that was cancelled while its rows waited brings none
                    wanted.append((message, table))
        return number, wanted

    # -- ends ------------------------------------------------------------------------------------------------------

    def _settle(
        self, connection: sa.Connection, call: int, to: State, event: str | None = None, text: str = ""
    ) -> None:
        """End a call's open tasks and tell the sweeps that need them."""
        affected = db.sweeps_of(connection, call)
        db.settle_tasks(connection, call, to)
        for sweep in affected:
            if event is not None:
                self._tell(connection, sweep, event, text, call=call)
            if to is State.FAILED:
                self._limit_failures(connection, sweep)
            self._finish_if_through(connection, sweep)

    def _finish_sweeps(self, connection: sa.Connection, call: int) -> None:
        for sweep in db.sweeps_of(connection, call):
            self._finish_if_through(connection, sweep)

    def _limit_failures(self, connection: sa.Connection, sweep: str) -> None:
        row = connection.execute(sa.select(db.sweeps).where(db.sweeps.c.id == sweep)).one()
        spec = SweepSpec.model_validate(json.loads(row.spec))
        counts = db.count_cells(connection, sweep)
        failed = counts.get(State.FAILED, 0)
        if spec.fail_fast:
            self._end_early(connection, sweep, State.FAILED, "fail_fast: stopped at the first failure")
        elif spec.max_failed is not None and failed > spec.max_failed:
            self._end_early(
                connection, sweep, State.FAILED, f"{failed:,} cells failed, max_failed is {spec.max_failed:,}"
            )

    def _end_early(self, connection: sa.Connection, sweep: str, to: State, why: str) -> None:
        """End a sweep now. Its open cells are cancelled, and with them the calls that no other open sweep needs."""
        opened = db.open_calls(connection, sweep)
        for table in (db.cells, db.stages):
            connection.execute(
                table.update()
                .where(table.c.sweep == sweep, table.c.state == State.PENDING)
                .values(state=State.CANCELLED)
            )
        connection.execute(db.sweeps.update().where(db.sweeps.c.id == sweep).values(state=to, finished_at=time.time()))
        for call in opened:
            # Rows that are on their way into the table will be there: their call succeeds, and is not computed twice.
            if call.batch is not None or db.sweeps_of(connection, call.id):
                continue
            if db.move_call(connection, call.id, State.CANCELLED):
                db.settle_tasks(connection, call.id, State.CANCELLED)
                if self._flights.pop(call.id, None) is not None:
                    self._to_cancel.append(call.id)
        self._tell(connection, sweep, TERMINAL_EVENT, f"{to}: {why}", state=to, **self._counts(connection, sweep))

    def _finish_if_through(self, connection: sa.Connection, sweep: str) -> None:
        left = connection.scalar(
            sa.select(sa.literal(1)).where(db.cells.c.sweep == sweep, db.cells.c.state == State.PENDING).limit(1)
        )
        row = connection.execute(sa.select(db.sweeps).where(db.sweeps.c.id == sweep)).one()
        if left is not None or State(row.state) in FINISHED:
            return
        counts = db.count_cells(connection, sweep)
        if counts.get(State.FAILED) or counts.get(State.SKIPPED):
            end = State.FAILED
        elif counts.get(State.CANCELLED):
            end = State.CANCELLED
        elif set(counts) == {State.CACHED}:
            end = State.CACHED
        else:
            end = State.SUCCEEDED
        connection.execute(db.sweeps.update().where(db.sweeps.c.id == sweep).values(state=end, finished_at=time.time()))
        shown = ", ".join(f"{n:,} {state}" for state, n in sorted(counts.items()))
        self._tell(connection, sweep, TERMINAL_EVENT, f"{end}: {shown}", state=end, **self._counts(connection, sweep))
        log.info("sweep ended", sweep=sweep, state=str(end), **{str(state): n for state, n in counts.items()})

    # -- small things ----------------------------------------------------------------------------------------------

    def _tell(self, connection: sa.Connection, sweep: str, event: str, message: str, **data: Any) -> None:
        db.add_event(connection, sweep, event, canonical_json({"message": message, **_plain(data)}))

    def _counts(self, connection: sa.Connection, sweep: str) -> dict[str, Any]:
        return {"counts": {str(state): n for state, n in db.count_cells(connection, sweep).items()}}

    def _state(self, connection: sa.Connection, sweep: str) -> State:
        state = connection.scalar(sa.select(db.sweeps.c.state).where(db.sweeps.c.id == sweep))
        if state is None:
            raise NotFoundError(f"there is no sweep {sweep!r}")
        return State(state)

    def _replayed(self, key: str, body: str) -> str | None:
        with self._ledger.read() as connection:
            row = connection.execute(sa.select(db.idempotency).where(db.idempotency.c.key == key)).one_or_none()
        if row is None:
            return None
        if row.body != body:
            raise ConflictError(f"the idempotency key {key!r} came before with another body: choose a new key")
        return str(row.sweep)


def _count(call: Call) -> str:
    return f"{len(call.tasks):,} {call.kind}"


def _plain(data: Mapping[str, Any]) -> dict[str, Any]:
    return {name: str(value) if isinstance(value, State) else value for name, value in data.items()}
