"""A load: the same large sweep alone, beside pollers, and beside everyone, by turns; then one thing at a time."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from statistics import median

from tests.service_process import ServiceProcess, Usage

from . import sections
from .crowd import Crowd, Sizes, Targets, grid
from .http import Connection
from .record import Holdings, Record

Log = Callable[[str], None]

ALONE, POLLERS, EVERYONE = "alone", "beside pollers", "beside everyone"
QUIET_S = 45.0
"""By then the service has let go of the connections of a round."""
MEMORY_SHARE = 1.1
MORE = 5
"""Descriptors and threads that the last round may end with beyond the first."""


@dataclass
class Outcome:
    """Everything that is reported."""

    holdings: Holdings
    record: Record = field(default_factory=Record)
    rates: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    rounds: list[Usage] = field(default_factory=list)
    lines: list[sections.Line] = field(default_factory=list)
    delays: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    generator_share: float = 0.0


@dataclass(frozen=True, slots=True)
class Plan:
    """How much: seconds beside everyone in each round, cells of the large sweeps and of the huge one, and rounds."""

    seconds: float
    cells: int
    huge_cells: int
    rounds: int
    sizes: Sizes

    @property
    def section_s(self) -> float:
        return min(5.0, self.seconds / 6)

    @property
    def is_small(self) -> bool:
        return self.cells < 50_000


async def load(service: ServiceProcess, plan: Plan, log: Log) -> Outcome:
    """The whole load on one service, which has ended when it returns."""
    async with sections.connected(service.address) as connection:
        targets = await prepare(connection, plan.cells)
        log("prepared")
        outcome = Outcome(Holdings(service.usage()))
        started, own = time.perf_counter(), time.process_time()
        async with sampled(service, outcome.holdings):
            for number in range(1, plan.rounds + 1):
                await one_round(service, connection, targets, plan, outcome, log)
                outcome.rounds.append(await quiet(service, outcome.rounds[0] if outcome.rounds else None))
                now = outcome.rounds[-1]
                log(f"round {number}: {now.megabytes:,.0f} MB, {now.descriptors} descriptors, {now.threads} threads")
    outcome.problems += grown(outcome.rounds)
    outcome.generator_share = (time.process_time() - own) / (time.perf_counter() - started)
    await single_things(service, targets, plan, outcome, log)
    outcome.problems += [f"{what} ({count} times)" for what, count in outcome.record.problems.items()]
    return outcome


async def prepare(connection: Connection, cells: int) -> Targets:
    """A small sweep with an artifact, and a large one that has ended."""
    small = {
        "name": "small",
        "experiment": "noop",
        "fixed": {"base": "ok"},
        "axes": {"x": {"range": [12]}},
    }
    ids = []
    for document in (small, grid(cells, 0.5)):
        ids.append(str((await connection.post("/v1/sweeps", document)).json()["id"]))
        await sections.ended(connection, ids[-1])
    page = (await connection.get(f"/v1/sweeps/{ids[0]}/cells?limit=1")).json()
    return Targets(running=ids[1], ended=ids[1], small=ids[0], artifact=page["items"][0]["parents"]["base"])


async def one_round(
    service: ServiceProcess, connection: Connection, targets: Targets, plan: Plan, outcome: Outcome, log: Log
) -> None:
    """Sweeps alone, beside pollers and beside everyone, until everyone has worked for long enough."""
    sizes = plan.sizes
    only_pollers = replace(sizes, submitters=0, queriers=0, viewers=0, listeners=0)
    began = outcome.record.seconds
    while outcome.record.seconds - began < plan.seconds:
        for name, crowd in (
            (ALONE, None),
            (POLLERS, Crowd(service.address, targets, only_pollers, Record())),
            (EVERYONE, Crowd(service.address, targets, sizes, outcome.record, outcome.delays)),
        ):
            rate = await timed_sweep(connection, targets, plan.cells, crowd)
            outcome.rates[name].append(rate)
            log(f"{plan.cells:,} cells {name}: {rate:,.0f} cells/s")


async def timed_sweep(connection: Connection, targets: Targets, cells: int, crowd: Crowd | None) -> float:
    """Cells a second of one large sweep, from its submission to its end."""
    async with crowd.at_work() if crowd is not None else contextlib.nullcontext():
        started = time.perf_counter()
        answer = await connection.post("/v1/sweeps", grid(cells, time.time()))
        if answer.status != 201:
            raise RuntimeError(f"the sweep was not accepted: {answer.status} {answer.body[:300]!r}")
        targets.running = str(answer.json()["id"])
        state = await sections.ended(connection, targets.running)
        seconds = time.perf_counter() - started
    if state != "succeeded":
        raise RuntimeError(f"the sweep {targets.running} is {state}")
    return cells / seconds


async def quiet(service: ServiceProcess, first: Usage | None) -> Usage:
    """What the service holds when it has let go of the crowd's connections."""
    deadline = time.monotonic() + QUIET_S
    last = service.usage()
    while time.monotonic() < deadline:
        await asyncio.sleep(2.0)
        now = service.usage()
        settled = now.descriptors >= last.descriptors and now.threads >= last.threads
        if (first is None and settled) or (first is not None and not grown([first, now])):
            return now
        last = now
    return service.usage()


def grown(rounds: list[Usage]) -> list[str]:
    """What the last round ended with beyond the first."""
    first, last = rounds[0], rounds[-1]
    found = []
    if last.descriptors > first.descriptors + MORE:
        found.append(f"descriptors grew: {first.descriptors} → {last.descriptors}")
    if last.threads > first.threads + MORE:
        found.append(f"threads grew: {first.threads} → {last.threads}")
    if last.megabytes > MEMORY_SHARE * first.megabytes:
        found.append(f"memory grew: {first.megabytes:.0f} → {last.megabytes:.0f} MB")
    return found


@contextlib.asynccontextmanager
async def sampled(service: ServiceProcess, holdings: Holdings) -> AsyncIterator[None]:
    """Look at what the service holds, once a second."""

    async def look() -> None:
        while True:
            holdings.samples.append(service.usage())
            await asyncio.sleep(1.0)

    task = asyncio.create_task(look())
    try:
        yield
    finally:
        task.cancel()


async def single_things(service: ServiceProcess, targets: Targets, plan: Plan, outcome: Outcome, log: Log) -> None:
    """One thing at a time; the last one stops the service."""
    address, small = service.address, plan.is_small

    def add(lines: list[sections.Line]) -> None:
        outcome.lines += lines
        for what, figure in lines:
            log(f"{what}: {figure}")

    add([await sections.kept_healthz(address, 200 if small else 2000)])
    add(await sections.statuses(address, targets, plan.cells, plan.section_s))
    add([await sections.long_list(address, 50 if small else 1000)])
    add(await sections.heavy_queries(address, 6 if small else 40, 1_000 if small else 10_000))
    add(await sections.huge_submission(service, targets, plan.sizes, plan.huge_cells, lambda: service.alive))


def lost(rates: dict[str, list[float]], name: str) -> float:
    """The share of its cells a second that a sweep loses, against the same sweep alone."""
    return 1 - median(rates[name]) / median(rates[ALONE])
