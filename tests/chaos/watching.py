"""Checks of a service while it is killed: counts add up, finished stays finished, events have no gap."""

from __future__ import annotations

import json
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

import httpx

from .checks import Violation

FINISHED = frozenset({"succeeded", "cached", "failed", "cancelled", "skipped"})
TERMINAL = "sweep.finished"
REOPENED = ("sweep.retried", "sweep.extended")
POLL_S = 0.4
CELLS_EVERY_S = 2.0
PROGRESS = ("call.started", "call.finished")


class Observed:
    """Everything that was observed, checked against what must hold at any time. Threads share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._violations: dict[str, Violation] = {}
        self._cells: dict[str, dict[int, str]] = defaultdict(dict)
        self._ended: dict[str, str] = {}
        self.events: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.views: dict[str, Mapping[str, Any]] = {}
        self.views_seen = 0

    @property
    def violations(self) -> list[Violation]:
        with self._lock:
            return list(self._violations.values())

    def report(self, kind: str, what: str) -> None:
        """Record a violation, once."""
        with self._lock:
            self._violations.setdefault(f"{kind}: {what}", Violation(kind, what))

    def view(self, view: Mapping[str, Any]) -> None:
        """Check a sweep's view, from a list or of its own."""
        sweep, counts = view["id"], view["counts"]
        self.views_seen += 1
        if sum(counts.values()) != view["cells"]:
            self.report("counts that do not add up", f"{sweep}: {counts} of {view['cells']} cells")
        if any(n < 0 for n in counts.values()):
            self.report("negative count", f"{sweep}: {counts}")
        if view["state"] in FINISHED and set(counts) - FINISHED:
            self.report("ended sweep with open cells", f"{sweep} is {view['state']}: {counts}")
        if view["state"] not in FINISHED and sweep in self._ended:
            self.report("ended sweep that is open again", f"{sweep}: {self._ended[sweep]} → {view['state']}")
        if view["state"] in FINISHED and self._ended.setdefault(sweep, view["state"]) != view["state"]:
            self.report("ended sweep with another end", f"{sweep}: {self._ended[sweep]} → {view['state']}")
        earlier = self.views.get(sweep)
        if earlier is not None:
            for state in FINISHED:
                if counts.get(state, 0) < earlier["counts"].get(state, 0):
                    self.report("finished cells that went back", f"{sweep}: {earlier['counts']} → {counts}")
        self.views[sweep] = view

    def cells(self, sweep: str, states: Iterable[tuple[int, str]], total: int | None = None) -> None:
        """Check states of a sweep's cells by index; with ``total``, all cells must be among them."""
        known, n = self._cells[sweep], 0
        for index, state in states:
            n += 1
            if known.get(index) in FINISHED and known[index] != state:
                self.report("finished cell that went back", f"{sweep}, cell {index}: {known[index]} → {state}")
            known[index] = state
        if total is not None and n != total:
            self.report("cells missing in a view", f"{sweep}: {n} of {total}")

    def event(self, event: Mapping[str, Any]) -> None:
        """Check the next event of a sweep's stream, which may span several connections."""
        received = self.events[event["sweep"]]
        if received and event["id"] <= received[-1]["id"]:
            self.report("event ids that do not grow", f"{event['sweep']}: {received[-1]['id']} → {event['id']}")
        if received and received[-1]["type"] == TERMINAL and event["type"] not in REOPENED:
            self.report("event after the last", f"{event['sweep']}: {event['type']} {event['id']}")
        received.append(dict(event))

    def ended(self, sweep: str, history: list[dict[str, Any]]) -> None:
        """Check the events of an ended sweep against its whole history, which a new connection sent."""
        received = self.events[sweep]
        if [event["id"] for event in received] != [event["id"] for event in history]:
            missed = len({event["id"] for event in history} - {event["id"] for event in received})
            self.report("gap in the events over restarts", f"{sweep}: {missed} of {len(history)} not received")
        elif received != history:
            self.report("events that changed", sweep)
        types = [event["type"] for event in history]
        runs = 1 + sum(kind in REOPENED for kind in types)
        if types.count(TERMINAL) != runs or types[-1] != TERMINAL:
            self.report("terminal event not exactly once", f"{sweep}: {types.count(TERMINAL)} in {runs} runs")
        if types[0] != "sweep.created" or types.count("sweep.created") != 1:
            self.report("sweep not created exactly once", f"{sweep}: {types[:3]}")

    def progressed_since(self, at: float) -> bool:
        """Whether a call has started or ended since ``at`` (Unix seconds)."""
        for received in list(self.events.values()):
            for event in reversed(received):
                if _seconds(event["at"]) <= at:
                    break
                if event["type"] in PROGRESS:
                    return True
        return False

    def starts(self) -> dict[int, list[float]]:
        """The times of each call's starts, from the events (Unix seconds)."""
        found: dict[int, list[float]] = {}
        for received in list(self.events.values()):
            of_sweep: dict[int, list[float]] = defaultdict(list)
            for event in list(received):
                if event["type"] == "call.started":
                    of_sweep[event["data"]["call"]].append(_seconds(event["at"]))
            for call, times in of_sweep.items():  # every sweep that needs the call gets the event
                found[call] = max(found.get(call, []), times, key=len)
        return found

    def sizes(self) -> dict[int, int]:
        """How many tasks each call computes, from the messages of its events."""
        found = {}
        for received in self.events.values():
            for event in received:
                if event["type"] == "call.started":
                    first = event["data"]["message"].split()[0].replace(",", "")
                    found[event["data"]["call"]] = int(first)
        return found


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


class Watcher:
    """Threads that check the service while it runs: every view repeatedly, and each sweep's events."""

    def __init__(self, url: Callable[[], str], seen: Observed) -> None:
        self._url, self.seen = url, seen
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        self._start_thread(self._poll)

    def follow(self, sweep: str) -> None:
        """Read a sweep's events to its end, over any number of connections."""
        self._start_thread(self._follow, sweep)

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(30)

    def _start_thread(self, work: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _poll(self) -> None:
        cells_at = 0.0
        closed: set[str] = set()
        while not self._stopping.wait(POLL_S):
            try:
                with httpx.Client(base_url=self._url(), timeout=30, trust_env=False) as http:
                    views = list(self.paged(http, "/v1/sweeps"))
                    for view in views:
                        self.seen.view(view)
                    if time.monotonic() - cells_at < CELLS_EVERY_S:
                        continue
                    cells_at = time.monotonic()
                    for view in views:
                        if view["id"] not in closed:
                            self.look(http, view)
                            if view["state"] in FINISHED:
                                closed.add(view["id"])
            except httpx.TransportError:
                continue  # the service is down, or was killed while it answered

    def look(self, http: httpx.Client, view: Mapping[str, Any]) -> None:
        """Check one sweep's own view, and its cells."""
        alone = self.get(http, f"/v1/sweeps/{view['id']}")
        self.seen.view(alone.json())
        cells = self.paged(http, f"/v1/sweeps/{view['id']}/cells")
        self.seen.cells(view["id"], ((cell["index"], cell["state"]) for cell in cells), view["cells"])

    def paged(self, http: httpx.Client, path: str) -> Iterator[dict[str, Any]]:
        """Every item of a list."""
        cursor: dict[str, str] = {}
        while True:
            page = self.get(http, path, limit="1000", **cursor).json()
            yield from page["items"]
            if page["next"] is None:
                return
            cursor = {"cursor": page["next"]}

    def get(self, http: httpx.Client, path: str, **query: str) -> httpx.Response:
        """An answer; an error is a violation.

        Raises:
            httpx.TransportError: when there is no answer, or an error.
        """
        answer = http.get(path, params=query)
        if answer.is_error:
            self.seen.report(
                "error for a valid request",
                f"{path.split('/s0', maxsplit=1)[0]}: {answer.status_code} {answer.text[:300]}",
            )
            raise httpx.ReadError(answer.text[:100])
        return answer

    def _follow(self, sweep: str) -> None:
        last = 0
        while not self._stopping.is_set():
            headers = {"Last-Event-ID": str(last)} if last else {}
            try:
                for event in self.stream(sweep, headers):
                    self.seen.event(event)
                    last = event["id"]
                    if self._stopping.is_set():
                        return
                if self.seen.events[sweep] and self.seen.events[sweep][-1]["type"] == TERMINAL:
                    return
            except httpx.TransportError:
                pass
            self._stopping.wait(0.2)

    def stream(self, sweep: str, headers: Mapping[str, str]) -> Iterator[dict[str, Any]]:
        """Events of one connection: lines of ``data:``, which also hold the id."""
        url = f"{self._url()}/v1/sweeps/{sweep}/events"
        with httpx.stream("GET", url, headers=headers, timeout=httpx.Timeout(10, read=60), trust_env=False) as answer:
            if answer.is_error:
                answer.read()
                self.seen.report(
                    "error for a valid request", f"events of {sweep}: {answer.status_code} {answer.text[:300]}"
                )
                raise httpx.ReadError(answer.text[:100])
            event: dict[str, Any] | None = None
            for line in answer.iter_lines():
                if line.startswith("data: "):
                    event = json.loads(line[6:])
                elif not line and event is not None:  # only a blank line ends an event: an incomplete one is dropped
                    yield event
                    event = None
