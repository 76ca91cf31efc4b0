"""Event streams that wait for something new."""

from __future__ import annotations

import asyncio
import threading

import pytest

from creditgrid.service.api import listeners
from creditgrid.service.api.listeners import Listeners
from creditgrid.service.ledger.changes import Changes

LONG_S = 60.0


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listeners, "POLL_S", 0.01)


def test_listeners_wake_when_their_sweep_has_an_event() -> None:
    changes = Changes()
    waiting = Listeners(changes, threading.Event())

    async def scenario() -> None:
        ours = [asyncio.create_task(waiting.wait("a", 0, LONG_S)) for _ in range(3)]
        other = asyncio.create_task(waiting.wait("b", 0, LONG_S))
        changes.ended({"c": True})
        changes.ended({})
        await asyncio.sleep(0.1)
        assert not any(task.done() for task in (*ours, other))
        changes.ended({"a": False})
        async with asyncio.timeout(LONG_S):
            await asyncio.gather(*ours)
        assert not other.done()
        async with asyncio.timeout(LONG_S):
            await waiting.wait("a", changes.of_events("a") - 1, LONG_S)  # an event between a read and the wait
        other.cancel()

    asyncio.run(scenario())


def test_listeners_wake_when_the_service_stops_or_time_is_out() -> None:
    stopping = threading.Event()
    waiting = Listeners(Changes(), stopping)

    async def scenario() -> None:
        async with asyncio.timeout(LONG_S):
            await waiting.wait("a", 0, 0.02)
            await waiting.wait("a", 0, -1.0)
            task = asyncio.create_task(waiting.wait("a", 0, LONG_S))
            await asyncio.sleep(0)
            stopping.set()
            await task

    asyncio.run(scenario())


def test_nothing_is_looked_at_when_nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    stopping = threading.Event()
    waiting = Listeners(Changes(), stopping)
    looks = 0
    inner = stopping.is_set

    def counted() -> bool:
        nonlocal looks
        looks += 1
        return inner()

    monkeypatch.setattr(stopping, "is_set", counted)

    async def scenario() -> None:
        async with asyncio.timeout(LONG_S):
            await waiting.wait("a", 0, 0.05)
        await asyncio.sleep(0.05)
        before = looks
        await asyncio.sleep(0.1)
        assert looks == before > 0

    asyncio.run(scenario())
