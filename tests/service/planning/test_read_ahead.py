"""Items are read ahead in a thread, in order, and the thread ends with its user."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from sweeping import wait_until

from creditgrid.service.planning.read_ahead import DEPTH, ReadAhead


class Broken(Exception):
    pass


def test_items_come_in_order_and_some_are_read_ahead() -> None:
    read: list[int] = []

    def items() -> Iterator[int]:
        for n in range(20):
            read.append(n)
            yield n

    with ReadAhead(items(), threading.Event()) as ahead:
        wait_until(lambda: len(read) == DEPTH + 1)  # one waits for its place
        assert ahead.ready
        assert list(ahead) == list(range(20))


def test_an_error_comes_in_its_place() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise Broken

    found = []
    with pytest.raises(Broken), ReadAhead(items(), threading.Event()) as ahead:
        found.extend(ahead)
    assert found == [1]
    with ReadAhead(items(), threading.Event()) as ahead:
        assert next(iter(ahead)) == 1


def test_the_thread_ends_when_its_user_has_enough() -> None:
    abandoned = threading.Event()

    def items() -> Iterator[int]:
        yield 1
        while not abandoned.wait(0.01):
            pass
        raise Broken

    with ReadAhead(items(), abandoned) as ahead:
        assert next(iter(ahead)) == 1
        assert not ahead.ready
    assert not [thread for thread in threading.enumerate() if thread.name == "creditgrid-read-ahead"]
