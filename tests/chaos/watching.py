"""What is seen of a service while it is killed: counts that add up, no way back from an end, events without a gap."""

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
NEW_LIFE = ("sweep.retried", "sweep.extended")
POLL_S = 0.4
CELLS_EVERY_S = 2.0
PROGRESS = ("call.started", "call.finished")


class Seen:
    """Everything that was seen, held against what must hold at any time. Threads share it."""

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

    def accuse(self, kind: str, what: str) -> None:
        """Note a violation, once."""
        with self._lock:
            self._violations.setdefault(f"{kind}: {what}", Violation(kind, what))

    def view(self, view: Mapping[str, Any]) -> None:
        """A sweep's view, from a list or alone."""
        sweep, counts = view["id"], view["counts"]
        self.views_seen += 1
        if sum(counts.values()) != view["cells"]:
            self.accuse("counts that do not add up", f"{sweep}: {counts} of {view['cells']} cells")
        if any(n < 0 for n in counts.values()):
            self.accuse("negative count", f"{sweep}: {counts}")
        if view["state"] in FINISHED and set(counts) - FINISHED:
            self.accuse("ended sweep with open cells", f"{sweep} is {view['state']}: {counts}")
        if view["state"] not in FINISHED and sweep in self._ended:
            self.accuse("ended sweep that is open again", f"{sweep}: {self._ended[sweep]} → {view['state']}")
        if view["state"] in FINISHED and self._ended.setdefault(sweep, view["state"]) != view["state"]:
            self.accuse("ended sweep with another end", f"{sweep}: {self._ended[sweep]} → {view['state']}")
        earlier = self.views.get(sweep)
        if earlier is not None:
            for state in FINISHED:
                if counts.get(state, 0) < earlier["counts"].get(state, 0):
                    self.accuse("finished cells that went back", f"{sweep}: {earlier['counts']} → {counts}")
        self.views[sweep] = view

    def cells(self, sweep: str, states: Iterable[tuple[int, str]], total: int | None = None) -> None:
        """States of a sweep's cells by index; all of them, if ``total`` says how many there are."""
        known, n = self._cells[sweep], 0
        for index, state in states:
            n += 1
            if known.get(index) in FINISHED and known[index] != state:
                self.accuse("finished cell that went back", f"{sweep}, cell {index}: {known[index]} → {state}")
            known[index] = state
        if total is not None and n != total:
            self.accuse("cells missing in a view", f"{sweep}: {n} of {total}")

    def event(self, event: Mapping[str, Any]) -> None:
        """The next event of a sweep's stream, over all its connections."""
        heard = self.events[event["sweep"]]
        if heard and event["id"] <= heard[-1]["id"]:
            self.accuse("event ids that do not grow", f"{event['sweep']}: {heard[-1]['id']} → {event['id']}")
        if heard and heard[-1]["type"] == TERMINAL and event["type"] not in NEW_LIFE:
            self.accuse("event after the last", f"{event['sweep']}: {event['type']} {event['id']}")
        heard.append(dict(event))

    def ended(self, sweep: str, told: list[dict[str, Any]]) -> None:
        """A sweep has ended, and this is its whole history as a new connection tells it."""
        heard = self.events[sweep]
        if [event["id"] for event in heard] != [event["id"] for event in told]:
            missed = len({event["id"] for event in told} - {event["id"] for event in heard})
            self.accuse("gap in the events over restarts", f"{sweep}: {missed} of {len(told)} not heard")
        elif heard != told:
            self.accuse("events that changed", sweep)
        types = [event["type"] for event in told]
        lives = 1 + sum(kind in NEW_LIFE for kind in types)
        if types.count(TERMINAL) != lives or types[-1] != TERMINAL:
            self.accuse("terminal event not exactly once", f"{sweep}: {types.count(TERMINAL)} in {lives} lives")
        if types[0] != "sweep.created" or types.count("sweep.created") != 1:
            self.accuse("sweep not created exactly once", f"{sweep}: {types[:3]}")

    def progressed_since(self, at: float) -> bool:
        """Whether a call has started or ended since then (seconds of the epoch)."""
        for heard in list(self.events.values()):
            for event in reversed(heard):
                if _seconds(event["at"]) <= at:
                    break
                if event["type"] in PROGRESS:
                    return True
        return False

    def starts(self) -> dict[int, list[float]]:
        """When each call was started, as the events tell (seconds of the epoch)."""
        found: dict[int, list[float]] = {}
        for heard in list(self.events.values()):
            of_sweep: dict[int, list[float]] = defaultdict(list)
            for event in list(heard):
                if event["type"] == "call.started":
                    of_sweep[event["data"]["call"]].append(_seconds(event["at"]))
            for call, times in of_sweep.items():  # an event is told to every sweep that needs the call
                found[call] = max(found.get(call, []), times, key=len)
        return found

    def sizes(self) -> dict[int, int]:
        """How many tasks each call computes, as its messages tell."""
        found = {}
        for heard in self.events.values():
            for event in heard:
                if event["type"] == "call.started":
                    first = event["data"]["message"].split()[0].replace(",", "")
                    found[event["data"]["call"]] = int(first)
        return found


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


class Watcher:
    """Threads that look at the service as long as it runs: every view again and again, and each sweep's events."""

    def __init__(self, url: Callable[[], str], seen: Seen) -> None:
        self._url, self.seen = url, seen
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        self._begin(self._poll)

    def follow(self, sweep: str) -> None:
        """Listen to a sweep's events to its end, over however many connections."""
        self._begin(self._follow, sweep)

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(30)

    def _begin(self, work: Callable[..., None], *arguments: Any) -> None:
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
                continue  # it is down, or was killed while it answered

    def look(self, http: httpx.Client, view: Mapping[str, Any]) -> None:
        """One sweep's own view, and its cells."""
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
        """An answer; one that is an error is a violation.

        Raises:
            httpx.TransportError: also for an error, as for no answer.
        """
        answer = http.get(path, params=query)
        if answer.is_error:
            self.seen.accuse(
                "error for a sound request",
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
        """Events of one connection: lines of ``data:``, which hold the id too."""
        url = f"{self._url()}/v1/sweeps/{sweep}/events"
        with httpx.stream("GET", url, headers=headers, timeout=httpx.Timeout(10, read=60), trust_env=False) as answer:
            if answer.is_error:
                answer.read()
                self.seen.accuse(
                    "error for a sound request", f"events of {sweep}: {answer.status_code} {answer.text[:300]}"
                )
                raise httpx.ReadError(answer.text[:100])
            whole: dict[str, Any] | None = None
            for line in answer.iter_lines():
                if line.startswith("data: "):
                    whole = json.loads(line[6:])
                elif not line and whole is not None:  # only a blank line ends an event: one that is cut off is dropped
                    yield whole
                    whole = None
