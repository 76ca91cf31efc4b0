"""Threads get the lock in the order in which they ask for it."""

from __future__ import annotations

import threading
import time

import pytest
from sweeping import wait_until

from creditgrid.service.ledger.turns import Turns


def test_who_asks_first_is_first() -> None:
    turns, order = Turns(), []

    def take(number: int) -> None:
        with turns:
            order.append(number)

    threads = [threading.Thread(target=take, args=(number,)) for number in range(20)]
    with turns:
        for number, thread in enumerate(threads):
            thread.start()
            wait_until(lambda number=number: len(turns._waiting) == number + 1)  # type: ignore[misc]
    for thread in threads:
        thread.join()
    assert order == list(range(20))


def test_a_thread_that_takes_it_again_and_again_keeps_nobody_waiting() -> None:
    turns, stop, taken = Turns(), threading.Event(), 0

    def hog() -> None:
        while not stop.is_set():
            with turns:
                time.sleep(0.005)

    thread = threading.Thread(target=hog)
    thread.start()
    try:
        for _ in range(20):
            with turns:
                taken += 1
            time.sleep(0.001)
    finally:
        stop.set()
        thread.join()
    assert taken == 20


def test_it_is_released_after_an_error_and_not_taken_twice() -> None:
    turns = Turns()
    with pytest.raises(KeyError), turns:
        raise KeyError
    with turns, pytest.raises(RuntimeError, match="has the lock already"):
        turns.__enter__()
    with turns:
        pass
