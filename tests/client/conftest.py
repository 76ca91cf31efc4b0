"""A small service over real sockets, which answers from memory and fails on demand."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from safetensors.numpy import save

from creditgrid.client import connection
from creditgrid.client.client import Client
from creditgrid.core.states import State
from creditgrid.core.wire import (
    MEDIA_TYPES,
    Condition,
    EventView,
    Extension,
    LogView,
    Page,
    Problem,
    ProblemError,
    SummaryView,
    SweepView,
    TaskDocument,
)

NOW = "2026-01-02T03:04:05Z"
ARTIFACT, PROBLEM = "application/vnd.safetensors", "application/problem+json"


class FakeService:
    """A service for the tests: ``log`` of (method, path, headers, body); ``faults`` for the next requests."""

    def __init__(self) -> None:
        self.log: list[tuple[str, str, dict[str, str], bytes]] = []
        self.faults: deque[str | Problem] = deque()  # "drop before", "drop after", "html 502", "cut", or a problem
        self.sweeps: dict[str, SweepView] = {}
        self.keys: dict[str, str] = {}  # Idempotency-Key → sweep
        self.events: dict[str, list[EventView]] = {}
        self.event_limits: deque[int] = deque()  # connections of /events end abruptly after so many events
        self.failures: list[dict[str, Any]] = []
        self.tasks: dict[str, TaskDocument] = {}
        self.printed: dict[str, tuple[str, bool]] = {}  # task → its log, and whether it has ended
        self.artifacts: dict[str, bytes] = {}  # files by key; others are made up
        self.gone: set[str] = set()  # artifacts that are no longer there
        self.damaged: set[str] = set()  # artifacts that are not what was written
        self.refuse_extension: Callable[[Extension], Problem | None] = lambda more: None
        self.table = pa.table({"method": ["dfa", "vec"], "eta": [1e-3, 1e-2], "n": [1, None]})
        self.token = ""
        self.on_view: Callable[[str], None] = lambda sweep: None
        self.url = ""

    def add(self, state: State = State.RUNNING, **fields: Any) -> str:
        """A sweep of four cells."""
        sweep = fields.pop("id", f"s{len(self.sweeps) + 1}")
        counts = {State.SUCCEEDED: 3, state: 1} if state is not State.SUCCEEDED else {state: 4}
        view = {
            "id": sweep,
            "name": "a [red]grid[/red]",
            "experiment": "linesearch",
            "state": state,
            "priority": 0,
            "cells": 4,
            "counts": counts,
            "tasks": {"train": {State.SUCCEEDED: 1}, "fit": {State.RUNNING: 2}},
            "created_at": NOW,
            "finished_at": NOW if state.finished else None,
        }
        self.sweeps[sweep] = SweepView.model_validate(view | fields)
        self.events.setdefault(sweep, [])
        return sweep

    def change(self, sweep: str, state: State) -> None:
        self.sweeps.pop(sweep)
        self.add(state, id=sweep)

    def emit(self, sweep: str, type: str, message: str = "") -> None:
        events = self.events[sweep]
        data = {"message": message or type, "counts": {}}
        events.append(EventView(id=10 * (len(events) + 1), sweep=sweep, at=NOW, type=type, data=data))  # type: ignore[arg-type]

    def prints(self, key: str, text: str, *, ended: bool = True) -> None:
        """The task prints, and ends or not."""
        self.printed[key] = self.printed.get(key, ("", True))[0] + text, ended

    def posts(self, path: str) -> list[tuple[dict[str, str], bytes]]:
        return [(headers, body) for method, at, headers, body in self.log if method == "POST" and at == path]


def _log_view(call: int, key: str, printed: tuple[str, bool]) -> dict[str, Any]:
    text, ended = printed
    state = State.SUCCEEDED if ended else State.RUNNING
    view = LogView(call=call, kind="train", key=key, state=state, bytes=len(text.encode()), written_at=NOW)  # type: ignore[arg-type]
    return view.model_dump(mode="json")


def _handler(service: FakeService) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # otherwise each answer waits 40 ms for an acknowledgement

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def do_GET(self) -> None:
            self._serve(b"")

        def do_POST(self) -> None:
            self._serve(self.rfile.read(int(self.headers.get("Content-Length", 0))))

        def _serve(self, body: bytes) -> None:
            path, _, query = self.path.partition("?")
            service.log.append((self.command, path, dict(self.headers), body))
            fault = service.faults.popleft() if service.faults else None
            if fault == "drop before":
                return self._hang_up()
            if fault == "html 502":
                return self._answer(502, b"<html>\n<h1>Bad Gateway</h1>", "text/html")
            if isinstance(fault, Problem):
                return self._problem(fault)
            if service.token and self.headers.get("Authorization") != f"Bearer {service.token}":
                return self._problem(Problem(title="Unauthorized", status=401, detail="a token is needed."))
            if path.endswith("/events"):
                return self._stream_events(path.split("/")[3])
            status, answer, kind = self._route(path, query, body)
            if fault == "drop after":
                return self._hang_up()
            return self._answer(status, answer, kind, cut=fault == "cut")

        def _route(self, path: str, query: str, body: bytes) -> tuple[int, bytes, str]:
            parts = path.split("/")[2:]
            accept = self.headers.get("Accept", "")
            if parts == ["sweeps"] and self.command == "POST":
                key = self.headers["Idempotency-Key"]
                if key not in service.keys:
                    service.keys[key] = service.add(State.PENDING, name=json.loads(body)["name"])
                return self._model(service.sweeps[service.keys[key]], 201)
            if parts == ["sweeps"]:
                return self._page([view.model_dump(mode="json") for view in service.sweeps.values()], query)
            if parts[0] == "sweeps":
                return self._sweep(parts[1:], query, accept, body)
            if parts == ["query"]:
                return 200, _rows(service.table, accept), accept
            if parts[0] == "tasks" and parts[-1] == "logs" and parts[1] in service.printed:
                options = dict(pair.split("=") for pair in query.split("&") if pair)
                text = service.printed[parts[1]][0].encode()[int(options.get("after", 0)) :]
                return 200, text[-int(options.get("tail", 10**6)) :], "text/plain; charset=utf-8"
            if parts[0] == "tasks" and parts[1] in service.tasks:
                return self._model(service.tasks[parts[1]])
            if parts[0] == "artifacts" and parts[1] in service.gone:
                return self._missing(f"artifact {parts[1]}")
            if parts[0] == "artifacts" and parts[-1] == "record":
                return 200, json.dumps({"key": parts[1], "kind": "train"}).encode(), "application/json"
            if parts[0] == "artifacts":
                made_up = save({"B.0": np.arange(6, dtype=np.float32).reshape(2, 3)})
                return 200, service.artifacts.get(parts[1], made_up), ARTIFACT
            return self._missing(path)

        def _sweep(self, parts: list[str], query: str, accept: str, body: bytes) -> tuple[int, bytes, str]:
            sweep, rest = parts[0], parts[1:]
            if sweep not in service.sweeps:
                return self._missing(f"sweep {sweep}")
            if not rest:
                service.on_view(sweep)
                return self._model(service.sweeps[sweep])
            if rest == ["cells"]:
                cells = [
                    {"index": i, "key": f"{i:064x}", "state": "succeeded", "params": {"eta": 0.1 * i}, "parents": {}}
                    for i in range(5)
                ]
                return self._page(cells, query)
            if rest == ["failures"]:
                return self._page(service.failures, "")
            if rest == ["tasks"]:
                return self._page([], query)
            if rest == ["logs"]:
                return self._page([_log_view(call, *found) for call, found in enumerate(service.printed.items())], "")
            if rest in (["results"], ["curves"]):
                return 200, _rows(service.table, accept), accept
            if rest == ["summary"]:
                row = {"method": "dfa", "best_eta": 0.01, "delta_loss_same": -0.25, "delta_loss_same_ci95": 0.0125}
                columns = ["method", "best_eta", "delta_loss_same"]
                verdict = {"name": "oracle descends", "text": "by -0.25", "numbers": {}}
                return self._model(
                    SummaryView.model_validate(
                        {
                            "sweep": sweep,
                            "title": "Best",
                            "columns": columns,
                            "rows": [row],
                            "verdicts": [verdict],
                            "complete": True,
                        }
                    )
                )
            if self.command == "POST" and rest[0] in ("cancel", "pause", "resume", "retry", "extend"):
                return self._control(service.sweeps[sweep], rest[0], body)
            return self._missing("/".join(parts))

        def _control(self, view: SweepView, verb: str, body: bytes) -> tuple[int, bytes, str]:
            """As the service does: nothing left to do is no error, what does not fit the sweep's state is."""
            ended = view.state.finished
            if verb == "extend":
                return self._extend(view, Extension.model_validate_json(body))
            if (verb == "cancel" and view.state is State.CANCELLED) or (
                verb in ("pause", "resume") and not ended and view.paused is (verb == "pause")
            ):
                already = {"cancel": "cancelled", "pause": "paused", "resume": "running"}[verb]
                return self._unchanged(view, f"it is {already} already")
            if ended is (verb != "retry"):
                return self._conflict(f"sweep {view.id} is {'finished' if ended else 'running'}")
            if verb == "cancel":
                service.change(view.id, State.CANCELLED)
            elif verb == "retry":
                service.change(view.id, State.PENDING)
            else:
                service.sweeps[view.id] = view.model_copy(update={"paused": verb == "pause"})
            return self._model(service.sweeps[view.id])

        def _extend(self, view: SweepView, more: Extension) -> tuple[int, bytes, str]:
            """One new cell for each value and entry, unless it is 0."""
            if (problem := service.refuse_extension(more)) is not None:
                return problem.status, problem.model_dump_json().encode(), PROBLEM
            new = sum(value != 0 for values in more.axes.values() for value in values) + len(more.include)
            if not new:
                return self._unchanged(view, "the sweep has all these cells")
            counts = {**view.counts, State.PENDING: view.counts.get(State.PENDING, 0) + new}
            update = {"cells": view.cells + new, "counts": counts, "state": State.RUNNING, "finished_at": None}
            service.sweeps[view.id] = view.model_copy(update=update)
            return self._model(service.sweeps[view.id])

        def _unchanged(self, view: SweepView, message: str) -> tuple[int, bytes, str]:
            condition = Condition(type="unchanged", message=f"nothing was changed: {message}")
            return self._model(view.model_copy(update={"conditions": [*view.conditions, condition]}))

        def _conflict(self, detail: str) -> tuple[int, bytes, str]:
            problem = Problem(title="Conflict", status=409, detail=detail)
            return 409, problem.model_dump_json().encode(), PROBLEM

        def _page(self, items: list[Any], query: str) -> tuple[int, bytes, str]:
            """Two items a page."""
            options = dict(pair.split("=") for pair in query.split("&") if pair)
            start = int(options.get("cursor", "0"))
            items = [item for item in items if options.get("state") in (None, item.get("state"))]
            next_ = str(start + 2) if start + 2 < len(items) else None
            return self._model(Page[Any](items=items[start : start + 2], next=next_))

        def _model(self, model: Any, status: int = 200) -> tuple[int, bytes, str]:
            return status, model.model_dump_json().encode(), "application/json"

        def _missing(self, what: str) -> tuple[int, bytes, str]:
            problem = Problem(title="Not Found", status=404, detail=f"there is no {what}")
            return 404, problem.model_dump_json().encode(), PROBLEM

        def _problem(self, problem: Problem) -> None:
            self._answer(problem.status, problem.model_dump_json().encode(), PROBLEM)

        def _stream_events(self, sweep: str) -> None:
            self.close_connection = True
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            since = int(self.headers.get("Last-Event-ID", "0"))
            limit = service.event_limits.popleft() if service.event_limits else 1_000_000
            sent, deadline = 0, time.monotonic() + 10
            self._chunk(b": hello\n\n")
            while time.monotonic() < deadline:
                for event in [event for event in service.events[sweep] if event.id > since]:
                    if sent == limit:
                        self._hang_up()
                        return
                    text = f"id: {event.id}\r\nevent: {event.type}\r\ndata: {event.model_dump_json()}\r\n\r\n"
                    self._chunk(text.encode())
                    since, sent = event.id, sent + 1
                if service.events[sweep] and service.events[sweep][-1].type == "sweep.finished":
                    self._chunk(b"")
                    return
                time.sleep(0.02)

        def _chunk(self, data: bytes) -> None:
            try:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
            except OSError:
                self.close_connection = True

        def _answer(self, status: int, data: bytes, kind: str, cut: bool = False) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            if kind.startswith("text/plain"):
                text, ended = service.printed[self.path.split("/")[3]]
                self.send_header("X-Log-Next", str(len(text.encode())))
                self.send_header("X-Log-Ended", str(ended).lower())
            if kind == ARTIFACT:
                digest = base64.b64encode(hashlib.sha256(data).digest()).decode()
                self.send_header("Repr-Digest", f"sha-512=:AAAA:, sha-256=:{digest}:")
                if self.path.split("/")[3] in service.damaged:
                    data = bytes([data[0] ^ 1]) + data[1:]
            self.end_headers()
            self.wfile.write(data[: len(data) // 2] if cut else data)
            if cut:
                self._hang_up()

        def _hang_up(self) -> None:
            self.close_connection = True
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)

    return Handler


def _rows(table: pa.Table, accept: str) -> bytes:
    if accept == MEDIA_TYPES["arrow"]:
        sink = io.BytesIO()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        return sink.getvalue()
    return f"rows as {accept}".encode()


@pytest.fixture
def service() -> Iterator[FakeService]:
    fake = FakeService()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(fake))
    server.daemon_threads = True
    fake.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield fake
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def client(service: FakeService) -> Iterator[Client]:
    with Client(service.url, timeout=5.0) as made:
        yield made


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between tries, which take no time."""
    taken: list[float] = []
    monkeypatch.setattr(connection, "sleep", taken.append)
    return taken


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CREDITGRID_URL", "CREDITGRID_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def spec_problem() -> Problem:
    return Problem(
        title="Unprocessable",
        status=422,
        detail="the spec is refused",
        errors=[ProblemError(pointer="/axes/eta/3", detail="eta: must be finite")],
    )
