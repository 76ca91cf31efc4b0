"""A small plan does not wait for a large one, and people take turns."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from sweeping import wait_until

from creditgrid.service.planning.plan_queue import LARGE, LARGE_SLOTS, SMALL_SLOTS, Lane, PlanQueue


def nobody_stops() -> None:
    pass


class Gone(Exception):
    pass


class Plan:
    """A plan in a thread: it holds its slot until ``end``."""

    def __init__(self, queue: PlanQueue, cells: int, owner: str | None = None) -> None:
        self.read, self.running, self.end = threading.Event(), threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self._run, args=(queue, cells, owner))
        self.thread.start()

    def _run(self, queue: PlanQueue, cells: int, owner: str | None) -> None:
        with queue.slot(owner, nobody_stops) as sized:
            self.read.set()
            sized(cells)
            self.running.set()
            self.end.wait()

    def finish(self) -> None:
        self.end.set()
        self.thread.join()


def test_large_plans_leave_the_slots_of_small_ones() -> None:
    queue = PlanQueue()
    large = [Plan(queue, LARGE + 1) for _ in range(SMALL_SLOTS + LARGE_SLOTS + 2)]
    for plan in large:
        assert plan.read.wait(10)  # all are read, though few run
    wait_until(lambda: sum(plan.running.is_set() for plan in large) == LARGE_SLOTS)
    small = Plan(queue, LARGE)
    assert small.running.wait(10)
    small.finish()
    for plan in large:
        plan.end.set()
    for plan in large:
        plan.finish()
        assert plan.running.is_set()


def test_no_more_small_plans_than_slots_run() -> None:
    queue = PlanQueue()
    plans = [Plan(queue, 1) for _ in range(SMALL_SLOTS + 2)]
    wait_until(lambda: sum(plan.running.is_set() for plan in plans) == SMALL_SLOTS)
    first = next(plan for plan in plans if plan.running.is_set())
    first.finish()
    wait_until(lambda: sum(plan.running.is_set() for plan in plans) == SMALL_SLOTS + 1)
    for plan in plans:
        plan.end.set()
    for plan in plans:
        plan.thread.join()


def test_who_has_fewer_plans_comes_first() -> None:
    lane, order = Lane(2), []
    ends = [threading.Event() for _ in range(4)]

    def plan(owner: str) -> None:
        with lane.slot(owner, nobody_stops):
            order.append(owner)
            ends[len(order) - 1].wait()

    threads = []
    for owner, running in (("anna", 1), ("anna", 2), ("anna", 2), ("ben", 2)):
        threads.append(threading.Thread(target=plan, args=(owner,)))
        threads[-1].start()
        wait_until(lambda running=running: len(order) == running)  # type: ignore[misc]
    wait_until(lambda: len(lane._waiting) == 2)
    ends[0].set()
    wait_until(lambda: len(order) == 3)
    assert order == ["anna", "anna", "ben"]
    for end in ends:
        end.set()
    for thread in threads:
        thread.join()


def test_a_wait_ends_when_nobody_wants_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    lane = Lane(1)

    def gone() -> None:
        raise Gone

    def hold(check: Callable[[], None]) -> None:
        with lane.slot(None, check):
            pass

    with lane.slot(None, nobody_stops), pytest.raises(Gone):
        hold(gone)
    hold(nobody_stops)
