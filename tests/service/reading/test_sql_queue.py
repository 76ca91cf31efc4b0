"""Which query runs next."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio
import pytest

from creditgrid.core.errors import BusyError
from creditgrid.service.reading.sql_queue import Lane, Place, QueryQueue

waits: list[float] = []


def make(heavy: int = 1, waiting: int = 10, wait_s: float = 10.0) -> QueryQueue:
    return QueryQueue(heavy, waiting, wait_s, waits.append)


def run(test: Callable[[QueryQueue], Awaitable[None]], queue: QueryQueue) -> None:
    async def within_time() -> None:
        with anyio.fail_after(20):
            await test(queue)

    anyio.run(within_time)
    assert queue.lengths() == {"running": 0, "waiting": 0}


async def arrive(queue: QueryQueue, count: int, client: str | None = None) -> list[Place]:
    """Queries that get their slots at once."""
    places = [queue.arrive(client) for _ in range(count)]
    for place in places:
        await queue.wait(place)
    return places


def test_the_newest_is_tried_first_and_the_oldest_runs_first() -> None:
    async def test(queue: QueryQueue) -> None:
        heavy, quick = await arrive(queue, 2)
        assert (heavy.lane, quick.lane) == (Lane.HEAVY, Lane.QUICK)
        order: list[tuple[int, Lane]] = []

        async def ask(number: int) -> None:
            place = queue.arrive()
            while await queue.wait(place) is Lane.QUICK:
                order.append((number, Lane.QUICK))
                queue.release(place)
            order.append((number, Lane.HEAVY))
            queue.release(place)

        async with anyio.create_task_group() as group:
            for number in range(3):
                group.start_soon(ask, number)
                await anyio.wait_all_tasks_blocked()
            assert queue.lengths() == {"running": 2, "waiting": 3}
            queue.release(quick)
            await anyio.wait_all_tasks_blocked()
            assert order == [(2, Lane.QUICK), (1, Lane.QUICK), (0, Lane.QUICK)]
            queue.release(heavy)
        assert order[3:] == [(0, Lane.HEAVY), (1, Lane.HEAVY), (2, Lane.HEAVY)]

    run(test, make())


def test_a_client_with_many_queries_does_not_delay_another() -> None:
    async def test(queue: QueryQueue) -> None:
        running = await arrive(queue, 3, "many")
        order: list[str] = []

        async def ask(client: str) -> None:
            place = queue.arrive(client)
            await queue.wait(place)
            order.append(client)
            queue.release(place)

        async with anyio.create_task_group() as group:
            for client in ("many", "many", "one"):
                group.start_soon(ask, client)
                await anyio.wait_all_tasks_blocked()
            queue.release(running[0])
            await anyio.wait_all_tasks_blocked()
            for place in running[1:]:
                queue.release(place)
        assert order[0] == "one"

    run(test, make(heavy=2))


def test_a_full_queue_refuses_at_once() -> None:
    async def test(queue: QueryQueue) -> None:
        running = await arrive(queue, 2)
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(queue.wait, queue.arrive())
            await anyio.wait_all_tasks_blocked()
            with pytest.raises(BusyError, match="3 queries wait"):
                await queue.wait(queue.arrive())
            group.cancel_scope.cancel()
        for place in running:
            queue.release(place)

    run(test, make(waiting=3))


def test_waiting_ends() -> None:
    async def test(queue: QueryQueue) -> None:
        running = await arrive(queue, 2)
        with pytest.raises(BusyError, match=r"within 0\.05 s"):
            await queue.wait(queue.arrive())
        for place in running:
            queue.release(place)

    waits.clear()
    run(test, make(wait_s=0.05))
    assert len(waits) == 3
    assert waits[2] > 0.04
