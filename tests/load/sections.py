"""Measurements of one thing each: ``/healthz``, status, the long list, a huge submission, heavy queries."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from tests.service_process import ServiceProcess

from .crowd import Crowd, Sizes, Targets, grid
from .http import Answer, Connection, NoAnswer
from .record import Record, quantile

Line = tuple[str, str]
"""What was measured, and the figure."""

CONNECTIONS = 50
STEADY_S = 200.0
"""Requests a second of the measurements at a steady rate."""
SLOW_QUERY = "SELECT sum(a.range * b.range % 7) FROM range(40000) a, range({size}) b"


def ms(values: list[float]) -> str:
    """p50, p99 and the longest, in ms."""
    p50, p99, longest = (1000 * quantile(values, share) for share in (0.5, 0.99, 1.0))
    return f"p50 {p50:.1f} ms, p99 {p99:.1f} ms, max {longest:.0f} ms (n {len(values):,})"


@asynccontextmanager
async def connected(address: tuple[str, int]) -> AsyncIterator[Connection]:
    """One connection."""
    connection = Connection(address)
    try:
        yield connection
    finally:
        connection.close()


async def kept_healthz(address: tuple[str, int], count: int) -> Line:
    """``/healthz`` again and again on one connection."""
    async with connected(address) as connection:
        times = [(await connection.get("/healthz")).seconds for _ in range(count)]
    return "`/healthz` on a kept connection", ms(times)


async def full_rate(address: tuple[str, int], path: str, seconds: float) -> float:
    """Answers a second when 50 connections ask without a pause."""
    until = time.perf_counter() + seconds

    async def ask() -> int:
        count = 0
        async with connected(address) as connection:
            while time.perf_counter() < until:
                count += (await connection.get(path)).status == 200
        return count

    return sum(await asyncio.gather(*(ask() for _ in range(CONNECTIONS)))) / seconds


async def steady(address: tuple[str, int], path: str, seconds: float, rate: float = STEADY_S) -> list[float]:
    """Seconds from the moment at which each request was due, at a fixed rate, to its answer."""
    times: list[float] = []
    first = time.perf_counter()

    async def ask(number: int) -> None:
        async with connected(address) as connection:
            for turn in range(max(1, math.floor(seconds * rate / CONNECTIONS))):
                due = first + (turn * CONNECTIONS + number) / rate
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                await connection.get(path)
                times.append(time.perf_counter() - due)

    await asyncio.gather(*(ask(number) for number in range(CONNECTIONS)))
    return times


async def statuses(address: tuple[str, int], targets: Targets, cells: int, seconds: float) -> list[Line]:
    """Statuses of three sizes at full and at steady rate; a running one is submitted for it."""
    found = []
    for name, path in (("`/healthz`", "/healthz"), ("status of a small sweep", f"/v1/sweeps/{targets.small}")):
        found.append((f"{name}, full rate", f"{await full_rate(address, path, seconds):,.0f}/s"))
    name, path = f"status of an ended sweep of {cells:,}", f"/v1/sweeps/{targets.ended}"
    found.append((f"{name}, full rate", f"{await full_rate(address, path, seconds):,.0f}/s"))
    found.append((f"{name}, at {STEADY_S:.0f}/s", ms(await steady(address, path, seconds))))
    for name, measure in (("full rate", full_rate), (f"at {STEADY_S:.0f}/s", steady)):
        async with connected(address) as connection, running(connection, grid(cells, time.time())) as sweep:
            result = await measure(address, f"/v1/sweeps/{sweep}", seconds)
            state = (await connection.get(f"/v1/sweeps/{sweep}")).json()["state"]
        figure = f"{result:,.0f}/s" if isinstance(result, float) else ms(result)
        found.append((f"status of a running sweep of {cells:,}, {name}", f"{figure} ({state} at the end)"))
    return found


@asynccontextmanager
async def running(connection: Connection, document: dict[str, object]) -> AsyncIterator[str]:
    """A submitted sweep, cancelled at the end."""
    answer = await connection.post("/v1/sweeps", document)
    if answer.status != 201:
        raise NoAnswer(f"the sweep was not accepted: {answer.status} {answer.body[:300]!r}")
    sweep = str(answer.json()["id"])
    try:
        yield sweep
    finally:
        await connection.post(f"/v1/sweeps/{sweep}/cancel")
        await ended(connection, sweep)


async def ended(connection: Connection, sweep: str) -> str:
    """The state of a sweep when it has ended."""
    while True:
        state = str((await connection.get(f"/v1/sweeps/{sweep}")).json()["state"])
        if state in ("succeeded", "cached", "failed", "cancelled"):
            return state
        await asyncio.sleep(0.1)


async def long_list(address: tuple[str, int], count: int) -> Line:
    """The longest page of sweeps, of which there are at least ``count``."""
    document = {"name": "one", "experiment": "noop", "axes": {"x": [1]}}

    async def submit(number: int) -> None:
        async with connected(address) as connection:
            for _ in range(number):
                await connection.post("/v1/sweeps", document)

    async with connected(address) as connection:
        have = len((await connection.get("/v1/sweeps?limit=1000")).json()["items"])
        await asyncio.gather(*(submit(math.ceil(max(0, count - have) / 8)) for _ in range(8)))
        answers = [await connection.get("/v1/sweeps?limit=1000") for _ in range(10)]
        first = await _after_change(connection, document)
    length = len(answers[-1].json()["items"])
    return (
        f"`GET /v1/sweeps?limit=1000` ({length:,} sweeps)",
        f"{ms([a.seconds for a in answers])}; after a change {1000 * first.seconds:.0f} ms",
    )


async def _after_change(connection: Connection, document: dict[str, object]) -> Answer:
    await connection.post("/v1/sweeps", document)
    return await connection.get("/v1/sweeps?limit=1000")


async def huge_submission(
    service: ServiceProcess, targets: Targets, sizes: Sizes, cells: int, pid_alive: Callable[[], bool]
) -> list[Line]:
    """Everything else while a huge sweep is submitted; then SIGTERM while another one is. The service is stopped."""
    record = Record()
    crowd = Crowd(service.address, targets, sizes, record)
    async with connected(service.address) as connection:
        async with crowd.at_work():
            answer = await connection.post("/v1/sweeps", {**grid(cells, time.time()), "priority": -5})
        if answer.status == 201:
            cancelled = await connection.post(f"/v1/sweeps/{answer.json()['id']}/cancel")
            record.answer("cancel of the huge sweep", cancelled.status, cancelled.seconds)
    writes = [t for route in ("submit", "cancel", "pause", "resume", "extend") for t in record.times.get(route, [])]
    found = [
        (f"submission of {cells:,} cells beside the others", f"{answer.status} after {answer.seconds:.1f} s"),
        ("all other requests meanwhile", f"{ms(record.all_times())}, errors {record.errors() or 'none'}"),
        ("writes among them", ms(writes)),
    ]
    async with connected(service.address) as connection:
        task = asyncio.create_task(connection.post("/v1/sweeps", grid(cells, time.time() + 1)))
        await asyncio.sleep(min(3.0, answer.seconds / 2))
        done = task.done()
        started = time.perf_counter()
        service.terminate()
        while pid_alive() and time.perf_counter() - started < 120:
            await asyncio.sleep(0.05)
        seconds = time.perf_counter() - started
        result = await _outcome(task)
    status = service.wait(1) if not pid_alive() else "still running"
    when = "after" if done else "during"
    found.append((f"SIGTERM {when} such a submission", f"exit status {status} after {seconds:.1f} s; it got {result}"))
    return found


async def _outcome(task: Awaitable[Answer]) -> str:
    try:
        return str((await task).status)
    except NoAnswer:
        return "no answer"


async def heavy_queries(address: tuple[str, int], count: int, size: int) -> list[Line]:
    """As many heavy queries at once, and a ``SELECT 1`` and a ``/healthz`` among them."""
    statuses: list[int] = []
    refusals: list[float] = []

    async def ask(sql: str) -> Answer:
        async with connected(address) as connection:
            return await connection.post("/v1/query?format=json", {"sql": sql})

    async def heavy() -> None:
        answer = await ask(SLOW_QUERY.format(size=size))
        statuses.append(answer.status)
        if answer.status == 503:
            refusals.append(answer.seconds)

    started = time.perf_counter()
    tasks = [asyncio.create_task(heavy()) for _ in range(count)]
    await asyncio.sleep(0.5)
    short = await ask("SELECT 1")
    async with connected(address) as connection:
        healthz = await connection.get("/healthz")
    await asyncio.gather(*tasks)
    seconds = time.perf_counter() - started
    counts = ", ".join(f"{status} × {statuses.count(status)}" for status in sorted(set(statuses)))
    refused = f"; 503 after at most {max(refusals):.1f} s" if refusals else ""
    figure = f"{short.status} after {short.seconds:.2f} s; `/healthz` after {1000 * healthz.seconds:.0f} ms"
    return [
        (f"`SELECT 1` behind {count} heavy queries", figure),
        ("the heavy queries", f"{counts} in {seconds:.0f} s{refused}"),
    ]
