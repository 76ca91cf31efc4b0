"""Reads that requests share."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable

import pytest

from creditgrid.service.api import shared_reads
from creditgrid.service.api.shared_reads import Read, SharedReads
from creditgrid.service.ledger.changes import Changes


class Source:
    """Something to read, and how often it was read."""

    def __init__(self, *, settled: bool = False, final: bool = False) -> None:
        self.value, self.reads = "first", 0
        self.settled, self.final = settled, final
        self.gate = threading.Event()
        self.gate.set()

    def read(self) -> Read[str]:
        self.reads += 1
        value = self.value
        assert self.gate.wait(20)
        return Read(value, len(value), self.settled, self.final)


class Asking:
    """Reads of one source under one key."""

    def __init__(self, source: Source, **limits: float) -> None:
        self.changes = Changes()
        self.reads = SharedReads(self.changes, **limits)  # type: ignore[arg-type]
        self._read = source.read

    async def get(self) -> str:
        return await self.reads.get("key", self._read, lambda: self.changes.of_sweep("a"))


def test_a_settled_read_is_valid_until_the_sweep_itself_changes() -> None:
    source = Source(settled=True)
    asking = Asking(source, live_s=0)

    async def scenario() -> None:
        assert await asking.get() == await asking.get() == "first"
        asking.changes.ended({"b": True})
        asking.changes.ended({"a": False})
        source.value = "second"
        assert await asking.get() == "first"
        assert source.reads == 1
        asking.changes.ended({"a": True})
        assert await asking.get() == "second"
        assert source.reads == 2

    asyncio.run(scenario())


def test_a_final_read_is_valid_for_ever() -> None:
    source = Source(settled=True, final=True)
    asking = Asking(source)

    async def scenario() -> None:
        for _ in range(3):
            assert await asking.get() == "first"
            asking.changes.ended({"a": True})
        assert source.reads == 1

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("live_s", "share", "reads"),
    [
        (60, 1e-9, [1, 1, 2]),  # a read may take nearly no time: steps of calls are shown after 60 s
        (60, 1e9, [1, 2, 3]),  # it may take all time
        (0, 1e-9, [2, 3, 4]),  # nothing may be old
    ],
)
def test_a_live_read_is_valid_for_a_while(live_s: float, share: float, reads: list[int]) -> None:
    source = Source()
    asking = Asking(source, live_s=live_s, share=share)
    found = []

    async def scenario() -> None:
        await asking.get()
        await asking.get()
        found.append(source.reads)
        asking.changes.ended({"a": False})  # a step of a call
        await asking.get()
        found.append(source.reads)
        asking.changes.ended({"a": True})
        await asking.get()
        found.append(source.reads)

    asyncio.run(scenario())
    assert found == reads


def test_pollers_get_what_is_there_while_it_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("creditgrid.service.api.shared_reads.monotonic", lambda: now)
    source = Source()
    asking = Asking(source, live_s=1)

    async def scenario() -> None:
        nonlocal now
        await asking.get()
        source.value = "second"
        source.gate.clear()
        now = 1.5
        assert [await asking.get() for _ in range(3)] == ["first"] * 3
        while source.reads < 2:
            await asyncio.sleep(0.01)
        now = 2.0  # twice as old as a read may become: wait for the new one
        late = asyncio.create_task(asking.get())
        await asyncio.sleep(0.05)
        assert not late.done()
        source.gate.set()
        assert await late == "second"
        assert source.reads == 2

    asyncio.run(scenario())


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


def test_those_who_ask_at_once_wait_for_one_read() -> None:
    source = Source()
    asking = Asking(source)

    async def scenario() -> None:
        source.gate.clear()
        asked = [asyncio.create_task(asking.get()) for _ in range(100)]
        await until(lambda: source.reads == 1)
        asked[0].cancel()  # one of them disconnects: the others get their answer
        asked += [asyncio.create_task(asking.get()) for _ in range(100)]
        await asyncio.sleep(0.05)
        source.gate.set()
        assert await asyncio.gather(*asked[1:]) == ["first"] * 199
        assert source.reads == 1

    asyncio.run(scenario())


def test_who_asks_after_a_change_does_not_get_a_read_from_before_it() -> None:
    source = Source(settled=True)
    asking = Asking(source)

    async def scenario() -> None:
        source.gate.clear()
        early = asyncio.create_task(asking.get())
        await until(lambda: source.reads == 1)
        source.value = "second"
        asking.changes.ended({"a": True})
        late = asyncio.create_task(asking.get())
        await until(lambda: source.reads == 2)
        source.gate.set()
        assert (await early, await late) == ("first", "second")
        assert await asking.get() == "second"
        assert source.reads == 2

    asyncio.run(scenario())


def test_an_error_reaches_all_who_wait_and_is_not_kept() -> None:
    asking = Asking(Source())
    calls = 0

    def fail() -> Read[str]:
        nonlocal calls
        calls += 1
        raise ValueError("no")

    async def scenario() -> None:
        def ask() -> asyncio.Task[str]:
            return asyncio.create_task(asking.reads.get("bad", fail, lambda: 0))

        found = await asyncio.gather(ask(), ask(), return_exceptions=True)
        assert [str(error) for error in found] == ["no", "no"]
        assert calls == 1
        with pytest.raises(ValueError, match="no"):
            await ask()
        assert calls == 2

    asyncio.run(scenario())


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_reads, "MAX_BYTES", 10 * (shared_reads.ENTRY_BYTES + 100))
    reads = SharedReads(Changes())
    made: list[int] = []

    async def ask(key: int, size: int = 100) -> None:
        def read() -> Read[int]:
            made.append(key)
            return Read(key, size, settled=True)

        assert await reads.get(key, read, lambda: 0) == key

    async def scenario() -> None:
        for key in range(10):
            await ask(key)
        await ask(0)  # used last
        await ask(10)
        await ask(0)
        assert made == list(range(11))
        await ask(1)  # the longest unused is gone
        assert made == [*range(11), 1]
        await ask(99, size=shared_reads.MAX_BYTES)  # larger than all: answered and not kept
        await ask(99, size=shared_reads.MAX_BYTES)
        assert made[-2:] == [99, 99]
        await ask(1)
        assert made[-1] == 99

    asyncio.run(scenario())
