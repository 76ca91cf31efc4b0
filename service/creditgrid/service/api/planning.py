"""Requests that plan: they have threads of their own, and end when their client has gone."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from anyio import CapacityLimiter, to_thread
from fastapi import Request

from creditgrid.core.errors import BusyError, PlanCancelled
from creditgrid.service.api.disconnects import disconnected, until_gone
from creditgrid.service.planning.plans import Check

Answer = TypeVar("Answer")

THREADS = 32
"""Requests that plan, or wait for a slot of the queue of plans, at a time."""
MOST_WAITING = 100
"""Requests that wait for a thread; one more is refused."""


class PlanningThreads:
    """Runs what plans, in threads that nothing else uses."""

    def __init__(self) -> None:
        self._threads = CapacityLimiter(THREADS)

    async def run(self, request: Request, plan: Callable[[Check], Answer]) -> Answer:
        """What ``plan`` returns or raises. It takes a check that raises once the client has gone.

        Raises:
            BusyError: too many requests wait.
        """
        if self._threads.statistics().tasks_waiting >= MOST_WAITING:
            raise BusyError("too many sweeps are being planned: submit again in a minute")
        gone = threading.Event()

        def check() -> None:
            if gone.is_set():
                raise PlanCancelled("the client has gone: nothing is left of its plan")

        return await until_gone(
            lambda: to_thread.run_sync(plan, check, limiter=self._threads),
            lambda: disconnected(request.receive),
            gone.set,
        )
