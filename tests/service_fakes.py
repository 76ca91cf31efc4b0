"""Fakes of the parts behind the HTTP API, and clients for an app with and without a socket."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

import anyio
import anyio.from_thread
import httpx
import pyarrow as pa
import pyarrow.dataset as pads
from fastapi import FastAPI

from creditgrid.core.errors import ConflictError, DatasetError, Fault, NotFoundError, SpecError
from creditgrid.core.spec.text import SpecText
from creditgrid.core.states import State
from creditgrid.core.wire import (
    TERMINAL_EVENT,
    Activity,
    CellView,
    EventView,
    Extension,
    FailureView,
    LogView,
    PlanKind,
    PlanView,
    Problem,
    RetentionRequest,
    RetentionView,
    SubmissionView,
    SummaryView,
    SweepView,
    TaskDocument,
    TaskView,
)
from creditgrid.service.codes import Codes
from creditgrid.service.connections import Connections
from creditgrid.service.ledger.changes import Changes
from creditgrid.service.people.actor import OPERATOR, Actor
from creditgrid.service.planning.admission import Admission
from creditgrid.service.reading.logs import TaskLog
from creditgrid.service.reading.rows import Rows
from creditgrid.service.results.delta_table import TableFiles
from creditgrid.service.server import Server, listen
from creditgrid.service.services import Services
from creditgrid.workers.artifacts import ArtifactStore
from creditgrid.workers.runner import Capacity

NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


class FakeLedger:
    """Sweeps and their events in memory; the fakes below share it."""

    def __init__(self) -> None:
        self.sweeps: dict[str, SweepView] = {}
        self.keys: dict[str, list[str]] = {}
        self.events: list[EventView] = []
        self.lock = threading.Lock()
        self.changes = Changes()

    def put(self, view: SweepView) -> None:
        self.sweeps[view.id] = view
        self.changes.ended({view.id: True})

    def sweep(self, sweep: str) -> SweepView:
        if sweep not in self.sweeps:
            raise NotFoundError(f"there is no sweep {sweep!r}")
        return self.sweeps[sweep]

    def emit(self, sweep: str, kind: str, **data: Any) -> None:
        with self.lock:
            at = NOW + timedelta(seconds=len(self.events))
            self.events.append(EventView(id=len(self.events) + 1, sweep=sweep, at=at, type=kind, data=data))
        self.changes.ended({sweep: kind.startswith("sweep.")})

    def finish(self, sweep: str, state: State = State.SUCCEEDED) -> None:
        view = self.sweeps[sweep]
        counts = {state: view.cells}
        self.put(view.model_copy(update={"state": state, "counts": counts, "finished_at": NOW}))
        self.emit(sweep, TERMINAL_EVENT, state=state)


class FakeScheduler:
    def __init__(self, ledger: FakeLedger) -> None:
        self.ledger = ledger
        self.trouble: str | None = None
        self.running = False
        self.stopped_with: float | None = None

    def start(self) -> None:
        self.running = True

    def stop(self, grace_s: float) -> None:
        self.running = False
        self.stopped_with = grace_s

    def problem(self) -> str | None:
        return self.trouble

    def activities(self) -> dict[int, tuple[Activity, float]]:
        return {1: (Activity(call=1, kind="train", tasks=3), 2.0)}

    def capacity(self) -> Capacity:
        return Capacity(cpu=2.0, gpu=0.0, nodes=1, degraded=self.trouble)


class FakeControl:
    def __init__(self, ledger: FakeLedger) -> None:
        self.ledger = ledger
        self.replays: dict[str, tuple[str, str]] = {}

    def submit(
        self, text: SpecText, idempotency: tuple[str, str] | None = None, actor: Actor = OPERATOR, check: Any = None
    ) -> tuple[str, bool]:
        document = text.parse()
        if idempotency is not None and idempotency[0] in self.replays:
            body, sweep = self.replays[idempotency[0]]
            if body != idempotency[1]:
                raise ConflictError("this Idempotency-Key came with another body")
            return sweep, False
        check_document(document)
        sweep = f"s{len(self.ledger.sweeps) + 1:04}"
        view = SweepView(
            id=sweep,
            name=document["name"],
            experiment=document["experiment"],
            owner=actor.name,
            state=State.RUNNING,
            priority=0,
            cells=3,
            counts={State.RUNNING: 2, State.SUCCEEDED: 1},
            created_at=NOW,
            spec=document,
        )
        self.ledger.put(view)
        self.ledger.keys[sweep] = [f"{digit}" * 64 for digit in "abc"]
        self.ledger.emit(sweep, "sweep.created")
        if idempotency is not None:
            self.replays[idempotency[0]] = idempotency[1], sweep
        return sweep, True

    def cancel(self, sweep: str, actor: Actor = OPERATOR) -> bool:
        state = self._state(sweep)
        if state is State.CANCELLED:
            return False
        if state.finished:
            raise ConflictError(f"sweep {sweep} has ended")
        self.ledger.finish(sweep, State.CANCELLED)
        return True

    def retry(self, sweep: str, actor: Actor = OPERATOR, check: Any = None) -> int:
        if not self._state(sweep).finished:
            raise ConflictError(f"sweep {sweep} runs")
        self.ledger.put(self.ledger.sweeps[sweep].model_copy(update={"state": State.PENDING}))
        self.ledger.emit(sweep, "sweep.retried")
        return 1

    def pause(self, sweep: str, actor: Actor = OPERATOR) -> bool:
        return self._set_paused(sweep, True)

    def resume(self, sweep: str, actor: Actor = OPERATOR) -> bool:
        return self._set_paused(sweep, False)

    def extend(self, sweep: str, extension: Extension, actor: Actor = OPERATOR, check: Any = None) -> int:
        self._state(sweep)
        if unknown := extension.axes.keys() - {"seed"}:
            raise SpecError([Fault(f"this sweep has no axis {name!r}", f"/axes/{name}") for name in sorted(unknown)])
        more = len(extension.axes.get("seed", ())) + len(extension.include)
        view = self.ledger.sweeps[sweep]
        self.ledger.put(view.model_copy(update={"cells": view.cells + more, "state": State.PENDING}))
        return more

    def _set_paused(self, sweep: str, paused: bool) -> bool:
        if self._state(sweep).finished:
            raise ConflictError(f"sweep {sweep} has ended")
        view = self.ledger.sweeps[sweep]
        self.ledger.put(view.model_copy(update={"paused": paused}))
        return view.paused is not paused

    def _state(self, sweep: str) -> State:
        return self.ledger.sweep(sweep).state


class FakePlans:
    """Also a planner."""

    def __init__(self) -> None:
        self.stopped = False
        self.submissions: list[SubmissionView] = []

    def start(self) -> None:
        pass

    def stop(self) -> None:
        self.stopped = True

    def underway(self) -> list[SubmissionView]:
        return self.submissions

    def cancel(self, sweep: str, allow: Any) -> None:
        kept = [view for view in self.submissions if view.id != sweep]
        if len(kept) == len(self.submissions):
            raise NotFoundError(f"no submission {sweep!r} is being planned")
        self.submissions[:] = kept

    def view(self, text: SpecText, owner: str | None, check: Any) -> PlanView:
        return self.plan(text, check, None)

    def plan(self, text: SpecText, check: Any, sized: Any) -> PlanView:
        document = text.parse()
        check_document(document)
        kind = PlanKind(total=3, cached=1, shared=0, new=2, unneeded=0, calls=1)
        return PlanView(
            name=document["name"],
            experiment=document["experiment"],
            cells=kind,
            tasks={"train": kind},
            groups=1,
            misses=[],
        )


def check_document(document: Any) -> None:
    """Refuse a few documents as the planner would."""
    if not isinstance(document, dict):
        raise SpecError([Fault("a sweep spec is an object", "")])
    missing = [Fault(f"{name} is missing", f"/{name}") for name in ("name", "experiment") if name not in document]
    if missing:
        raise SpecError(missing)
    if document["name"] == "missing-data":
        raise DatasetError("no such dataset")
    if document["name"] == "crash":
        raise ZeroDivisionError("secret detail")


class FakeSweeps:
    def __init__(self, ledger: FakeLedger) -> None:
        self.ledger = ledger

    def get(self, sweep: str) -> SweepView:
        return self.ledger.sweep(sweep)

    def page(
        self, state: State | None, after: int | None, limit: int, owner: str | None = None
    ) -> tuple[list[SweepView], int | None]:
        found = [view for view in reversed(self.ledger.sweeps.values()) if state in (None, view.state)]
        found = [view for view in found if owner in (None, view.owner)]
        start = after or 0
        following = start + limit if start + limit < len(found) else None
        return [view.model_copy(update={"spec": None}) for view in found[start : start + limit]], following

    def is_settled(self, sweep: str) -> bool:
        return self.ledger.sweep(sweep).state.finished

    def open_totals(self) -> tuple[dict[State, int], dict[State, int]]:
        opened = [view for view in self.ledger.sweeps.values() if not view.state.finished]
        cells: Counter[State] = Counter()
        for view in opened:
            cells.update(view.counts)
        return Counter(view.state for view in opened), cells

    def events(self, sweep: str, after: int, limit: int) -> list[EventView]:
        self.ledger.sweep(sweep)
        with self.ledger.lock:
            return [event for event in self.ledger.events if event.sweep == sweep and event.id > after][:limit]


class FakeCells:
    def __init__(self, ledger: FakeLedger) -> None:
        self.ledger = ledger

    def page(self, sweep: str, state: State | None, after: int, limit: int) -> tuple[list[CellView], int | None]:
        self.ledger.sweep(sweep)
        found = [
            CellView(index=index, key=key, state=State.SUCCEEDED, params={"eta": 0.1}, parents={})
            for index, key in enumerate(self.ledger.keys[sweep])
            if index > after and state in (None, State.SUCCEEDED)
        ]
        return found[:limit], found[limit - 1].index if len(found) > limit else None


class FakeTasks:
    def __init__(self, ledger: FakeLedger) -> None:
        self.ledger = ledger

    def page(self, sweep: str, state: State | None, after: str, limit: int) -> tuple[list[TaskView], str | None]:
        self.ledger.sweep(sweep)
        found = [
            TaskView(key=key, kind="train", state=State.CACHED, params={}, parents={}, attempt=1)
            for key in sorted(self.ledger.keys[sweep])
            if key > after
        ]
        return found[:limit], found[limit - 1].key if len(found) > limit else None

    def get(self, key: str) -> TaskDocument:
        raise NotFoundError(f"there is no task {key!r}")


class FakeLogs:
    """One log, ``text``, of the task ``"a" * 64``, which grows while ``ended`` is false."""

    def __init__(self, ledger: FakeLedger) -> None:
        self.ledger, self.text, self.ended = ledger, b"", True

    def of_task(self, key: str, after: str, tail: int) -> TaskLog:
        if key != "a" * 64:
            raise NotFoundError(f"there is no task {key!r}")
        ended = self.ended
        start = int(after or 0)
        text = self.text[max(start, len(self.text) - tail) :] if tail else b""
        return TaskLog(text, str(len(self.text)), 0, ended)

    def of_sweep(self, sweep: str, limit: int) -> list[LogView]:
        self.ledger.sweep(sweep)
        view = LogView(call=1, kind="train", key="a" * 64, state=State.RUNNING, bytes=len(self.text), written_at=NOW)
        return [view][: limit if self.text else 0]


class FakeFailures:
    def __init__(self, ledger: FakeLedger) -> None:
        self.ledger = ledger

    def of(self, sweep: str) -> list[FailureView]:
        self.ledger.sweep(sweep)
        return [
            FailureView(
                cause="boom",
                kind="fit",
                count=1,
                skipped=2,
                traceback="Traceback …",
                attempt=3,
                host="h",
                key="a" * 64,
                command="creditgrid run-task " + "a" * 64,
            )
        ]


class FakeSummaries:
    def __init__(self, ledger: FakeLedger) -> None:
        self.ledger = ledger

    def of(self, sweep: str) -> SummaryView:
        self.ledger.sweep(sweep)
        rows = [{"method": "dfa", "best_eta": 0.1}]
        return SummaryView(sweep=sweep, title="t", columns=["method"], rows=rows, verdicts=[], complete=False)


class FakeSnapshot:
    def __init__(self, tables: Mapping[str, pa.Table]) -> None:
        self.tables = tables

    def scan(self, table: str, columns: list[str], only: list[str] | None) -> Iterator[pa.RecordBatch]:
        yield from self.tables[table].select(columns).to_batches()


class FakeSqlTables:
    schemas: ClassVar = {
        "cells": pa.schema({"sweep": pa.string(), "idx": pa.int64(), "cell": pa.string(), "state": pa.string()}),
        "sweeps": pa.schema({"id": pa.string(), "name": pa.string(), "state": pa.string()}),
    }

    def __init__(self, ledger: FakeLedger, results: FakeResults) -> None:
        self.ledger, self._results = ledger, results

    def results(self) -> TableFiles:
        return self._results.files()

    def curves(self) -> TableFiles:
        return TableFiles("", (), pa.schema([("run", pa.string()), ("epoch", pa.int64())]), uniform=True)

    def cell_index(self, sweep: str) -> pa.Table:
        self.ledger.sweep(sweep)
        keys = self.ledger.keys[sweep]
        return pa.table({"idx": pa.array(range(len(keys)), pa.int64()), "cell": pa.array(keys, pa.string())})

    @contextmanager
    def snapshot(self) -> Iterator[FakeSnapshot]:
        rows: dict[str, list[dict[str, Any]]] = {
            "cells": [
                {"sweep": sweep, "idx": index, "cell": key, "state": "succeeded"}
                for sweep, keys in self.ledger.keys.items()
                for index, key in enumerate(keys)
            ],
            "sweeps": [
                {"id": view.id, "name": view.name, "state": view.state.value} for view in self.ledger.sweeps.values()
            ],
        }
        yield FakeSnapshot({name: pa.Table.from_pylist(rows[name], schema) for name, schema in self.schemas.items()})


class FakeResults:
    """A table that a test sets, written to a file so that it is a dataset of files like the real one."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._table: pa.Table | None = None

    def set(self, table: pa.Table) -> None:
        self._table = table
        pads.write_dataset(table, self.directory, format="parquet", existing_data_behavior="delete_matching")

    def dataset(self) -> pads.Dataset | None:
        return None if self._table is None else pads.dataset(self.directory, format="parquet")

    def files(self) -> TableFiles:
        paths = () if self._table is None else tuple(path.name for path in self.directory.glob("*.parquet"))
        schema = self.schema() if self._table is None else self._table.schema
        return TableFiles(str(self.directory), paths, schema, uniform=True)

    def schema(self) -> pa.Schema:
        return pa.schema([("cell", pa.string()), ("experiment", pa.string()), ("delta_loss_same", pa.float64())])


class FakeRetention:
    def __init__(self) -> None:
        self.requests: list[RetentionRequest] = []

    def run(self, request: RetentionRequest, actor: Actor = OPERATOR) -> RetentionView:
        self.requests.append(request)
        numbers = {"removed": 2, "removed_bytes": 2000, "kept": 3, "kept_bytes": 5000, "in_use": 1}
        return RetentionView(dry_run=request.dry_run, **numbers, leftovers=4, leftover_bytes=17)


class FakeMaintenance:
    def __init__(self) -> None:
        self.running = False

    def start(self) -> None:
        self.running = True

    def stop(self) -> None:
        self.running = False

    def counts(self) -> dict[str, tuple[int, int]]:
        return {"compact": (7, 1), "tidy": (1, 0)}


class FakeTokens:
    """No tokens but that of the settings."""

    exist = False

    def find(self, text: str) -> None:
        return None

    def accepts(self, actor: Actor) -> bool:
        return True


class FakeAudit:
    def __init__(self) -> None:
        self.rows: list[tuple[str | None, str, str, str]] = []

    def note(self, actor: Actor, action: str, target: str, detail: str = "") -> None:
        self.rows.append((actor.name, action, target, "done"))

    def note_refusal(self, actor: Actor, action: str, target: str, why: str) -> None:
        self.rows.append((actor.name, action, target, "refused"))


class FakeCalibrations:
    def start(self, ready: Any) -> None:
        pass

    def stop(self) -> None:
        pass


class Fakes:
    """All of them over one ledger, and the services they make."""

    def __init__(self, directory: Path) -> None:
        self.ledger = FakeLedger()
        self.scheduler = FakeScheduler(self.ledger)
        self.control = FakeControl(self.ledger)
        self.sweeps, self.cells, self.tasks = FakeSweeps(self.ledger), FakeCells(self.ledger), FakeTasks(self.ledger)
        self.logs = FakeLogs(self.ledger)
        self.failures, self.summaries = FakeFailures(self.ledger), FakeSummaries(self.ledger)
        self.results = FakeResults(directory / "results")
        self.sql_tables = FakeSqlTables(self.ledger, self.results)
        self.store = ArtifactStore(directory / "artifacts")
        self.codes = Codes(self.store, allowed=True)
        self.admission = Admission(self.codes, self.store)
        self.retention = FakeRetention()
        self.maintenance = FakeMaintenance()
        self.plans = FakePlans()
        self.tokens, self.audit = FakeTokens(), FakeAudit()
        self.calibrations = FakeCalibrations()

    def services(self) -> Services:
        parts: dict[str, Any] = dict(vars(self))
        parts["changes"] = parts.pop("ledger").changes
        rows = Rows(parts["sweeps"], parts["sql_tables"], parts.pop("results"), parts["codes"])
        return Services(rows=rows, **parts)


class AppClient:
    """httpx's client for an app in this process, called like a synchronous one."""

    def __init__(self, portal: anyio.from_thread.BlockingPortal, client: httpx.AsyncClient) -> None:
        self._portal, self._client = portal, client

    def request(self, method: str, url: str, **options: Any) -> httpx.Response:
        return self._portal.call(lambda: self._client.request(method, url, **options))

    def get(self, url: str, **options: Any) -> httpx.Response:
        return self.request("GET", url, **options)

    def post(self, url: str, **options: Any) -> httpx.Response:
        return self.request("POST", url, **options)


@contextmanager
def serving(app: FastAPI, *, started: bool = True) -> Iterator[AppClient]:
    """The app with its lifespan, and a client of it; unless ``started``, nothing schedules."""
    with anyio.from_thread.start_blocking_portal() as portal:
        lifespan = portal.wrap_async_context_manager(app.router.lifespan_context(app)) if started else nullcontext()
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        client = httpx.AsyncClient(transport=transport, base_url="http://localhost:8000")
        with lifespan, portal.wrap_async_context_manager(client):
            yield AppClient(portal, client)


@contextmanager
def listening(app: FastAPI, connections: Connections | None = None) -> Iterator[str]:
    """The app on a free port, in a thread; yields its URL."""
    listener = listen("127.0.0.1", 0)
    server = Server(app, Connections(1024) if connections is None else connections, 5, lambda: None, lambda: None)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def problem_in(response: httpx.Response, status: int) -> Problem:
    """The problem document in a response with this status."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = Problem.model_validate_json(response.text)
    assert problem.status == status
    assert problem.title
    return problem
