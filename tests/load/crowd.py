"""The people who use one service at the same time: pollers, submitters, queriers, event listeners, page viewers."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from .http import Answer, Connection, NoAnswer
from .record import Record

SHORT = ("SELECT 1", "SELECT count(*) FROM results WHERE x < 100", "SELECT state, count(*) FROM cells GROUP BY state")
HEAVY = """
SELECT x % 1000 AS g, count(*) AS n, avg(twice) AS mean, stddev(twice) AS spread FROM results GROUP BY g ORDER BY g
"""
numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Sizes:
    """How many of each there are, and how many requests a second they send together (of each listener: one stream)."""

    pollers: int = 200
    polls_s: float = 200.0
    submitters: int = 4
    submissions_s: float = 8.0
    queriers: int = 4
    queries_s: float = 8.0
    heavy_s: float = 0.5
    viewers: int = 4
    views_s: float = 8.0
    listeners: int = 50


class Person(Connection):
    """One person's connection, with what the person remembers: an ETag, and the last sweep that they submitted."""

    etag = ""
    sweep = ""


@dataclass
class Targets:
    """What is asked for: the running sweep (it changes), an ended one, a small one, and an artifact."""

    running: str
    ended: str
    small: str
    artifact: str


@dataclass
class Crowd:
    """Sends requests while its block runs."""

    address: tuple[str, int]
    targets: Targets
    sizes: Sizes
    record: Record
    delays: list[float] = field(default_factory=list)  # of events, from their commit to their receipt
    stopping: bool = False

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        """Everyone works until the block ends, and finishes what they have asked for: a slow answer counts too."""
        sizes = self.sizes
        started = time.perf_counter()
        roles: list[tuple[Callable[[Person], Awaitable[None]], int, float]] = [
            (self._poll, sizes.pollers, sizes.polls_s),
            (self._submit, sizes.submitters, sizes.submissions_s),
            (self._query, sizes.queriers, sizes.queries_s),
            (self._heavy_query, min(1, sizes.queriers), sizes.heavy_s),
            (self._view, sizes.viewers, sizes.views_s),
        ]
        tasks = [
            asyncio.create_task(self._repeat(role, people / rate))
            for role, people, rate in roles
            for _ in range(people)
        ]
        listening = [asyncio.create_task(self._listen()) for _ in range(sizes.listeners)]
        try:
            yield
        finally:
            self.record.seconds += time.perf_counter() - started
            self.stopping = True
            for task in listening:
                task.cancel()
            results = await asyncio.gather(*tasks, *listening, return_exceptions=True)
            for result in results:
                if isinstance(result, Exception):
                    raise result

    async def _repeat(self, role: Callable[[Person], Awaitable[None]], every: float) -> None:
        """Do something about every so many seconds; who was late does not hurry."""
        connection = Person(self.address)
        pause = random.random() * every
        try:
            while not self.stopping:
                if pause > 0:
                    await asyncio.sleep(min(pause, 0.5))  # so that the end is noticed
                    pause -= 0.5
                    continue
                started = time.perf_counter()
                await role(connection)
                pause = every * random.uniform(0.7, 1.3) - (time.perf_counter() - started)
        finally:
            connection.close()

    async def _send(self, route: str, answer: Awaitable[Answer]) -> Answer | None:
        try:
            found = await answer
        except NoAnswer as error:
            self.record.no_answer(route, str(error))
            return None
        self.record.answer(route, found.status, found.seconds)
        return found

    async def _poll(self, connection: Person) -> None:
        targets = self.targets
        kind = random.random()
        if kind < 0.6:
            sweep = targets.running if kind < 0.4 else targets.ended
            headers = {"if_none_match": connection.etag} if connection.etag and kind < 0.2 else {}
            found = await self._send("status", connection.get(f"/v1/sweeps/{sweep}", **headers))
            if found is not None and kind < 0.4:
                connection.etag = found.headers.get(b"etag", b"").decode()
        elif kind < 0.75:
            await self._send("list", connection.get("/v1/sweeps?limit=20"))
        elif kind < 0.9:
            await self._send("cells", connection.get(f"/v1/sweeps/{targets.running}/cells?limit=100"))
        else:
            await self._send("summary", connection.get(f"/v1/sweeps/{targets.small}/summary"))

    async def _submit(self, connection: Person) -> None:
        steps = ["cancel", "pause", "resume", "extend", "submit"]
        step = random.choice(steps) if connection.sweep else "submit"
        if step == "submit":
            found = await self._send("submit", connection.post("/v1/sweeps", small_sweep()))
            if found is not None and found.status == 201:
                connection.sweep = found.json()["id"]
            return
        document = {"axes": {"x": [10**9 + next(numbers)]}} if step == "extend" else None
        await self._send(step, connection.post(f"/v1/sweeps/{connection.sweep}/{step}", document))

    async def _query(self, connection: Person) -> None:
        document = {"sql": random.choice(SHORT)}
        await self._send("short SQL", connection.post("/v1/query?format=json", document))

    async def _heavy_query(self, connection: Person) -> None:
        await self._send("heavy SQL", connection.post("/v1/query?format=arrow", {"sql": HEAVY}))

    async def _view(self, connection: Person) -> None:
        route, path = random.choice(
            [
                ("/docs", "/docs"),
                ("/openapi.json", "/openapi.json"),
                ("artifact", f"/v1/artifacts/{self.targets.artifact}"),
                ("results, Arrow", f"/v1/sweeps/{self.targets.small}/results?format=arrow"),
            ]
        )
        await self._send(route, connection.get(path))

    async def _listen(self) -> None:
        while True:
            connection, sweep, since = Connection(self.address), self.targets.running, datetime.now(UTC)
            try:
                async for line in connection.lines(f"/v1/sweeps/{sweep}/events"):
                    if line.startswith(b"data: ") and (at := line.find(b'"at":"')) > 0:
                        sent = datetime.fromisoformat(line[at + 6 : line.index(b'"', at + 6)].decode())
                        if sent > since:  # not a replayed one
                            self.delays.append((datetime.now(UTC) - sent).total_seconds())
                self.record.statuses["events"]["200"] += 1
            except NoAnswer as error:
                self.record.no_answer("events", str(error))
            while self.targets.running == sweep:  # it has ended; the next one is submitted soon
                await asyncio.sleep(0.1)


def small_sweep() -> dict[str, Any]:
    """Ten cells that nobody has asked for."""
    first = 10 * next(numbers)
    return {
        "name": f"small {first}",
        "experiment": "noop",
        "fixed": {"y": -1.0},
        "axes": {"x": {"range": [first, first + 10]}},
    }


def grid(cells: int, number: float) -> dict[str, Any]:
    """A large sweep of cells that compute nothing; ``number`` makes them new."""
    return {
        "name": f"grid {number:g}",
        "experiment": "noop",
        "fixed": {"y": number},
        "axes": {"x": {"range": [cells]}},
    }
