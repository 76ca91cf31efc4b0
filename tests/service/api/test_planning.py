"""Requests that plan have threads of their own, and end with their client."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from service_fakes import Fakes, listening, problem_in
from sweeping import wait_until

from creditgrid.core.errors import PlanCancelled
from creditgrid.core.wire import PlanView
from creditgrid.service.api import planning
from creditgrid.service.api.app import create_app
from creditgrid.service.settings import Settings

SPEC = {"name": "n", "experiment": "linesearch"}


class SlowPlans:
    """Plans that are made until somebody stops them, or the test lets them end."""

    def __init__(self, fakes: Fakes) -> None:
        self.plans: Any = fakes.plans
        self.started = threading.Semaphore(0)
        self.end = threading.Event()
        self.errors: list[Exception] = []
        view = self.plans.view

        def slow(text: Any, owner: str | None, check: Callable[[], None]) -> PlanView:
            self.started.release()
            while not self.end.wait(0.01):
                try:
                    check()
                except Exception as error:
                    self.errors.append(error)
                    raise
            return view(text, owner, check)  # type: ignore[no-any-return]

        self.plans.view = slow


@pytest.fixture
def slow(fakes: Fakes) -> SlowPlans:
    return SlowPlans(fakes)


def test_a_plan_ends_when_its_client_hangs_up(slow: SlowPlans, app: FastAPI) -> None:
    with listening(app) as url:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}/v1/plans", json=SPEC, timeout=0.5)
        wait_until(lambda: len(slow.errors) == 1)
        assert isinstance(slow.errors[0], PlanCancelled)
        slow.end.set()
        assert httpx.post(f"{url}/v1/plans", json=SPEC).status_code == 200


def test_plans_take_no_thread_from_others_and_few_of_them_wait(
    slow: SlowPlans, fakes: Fakes, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "THREADS", 2)
    monkeypatch.setattr(planning, "MOST_WAITING", 1)
    sweep = "s0001"
    with listening(create_app(fakes.services(), settings)) as url:
        answers: list[int] = []
        threads = [
            threading.Thread(target=lambda: answers.append(httpx.post(f"{url}/v1/plans", json=SPEC).status_code))
            for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        for _ in range(2):
            assert slow.started.acquire(timeout=10)

        def refused() -> bool:
            response = httpx.post(f"{url}/v1/plans", json=SPEC, timeout=0.5)
            problem_in(response, 503)
            assert response.headers["retry-after"] == "5"
            return True

        wait_until(lambda: quietly(refused))
        assert httpx.get(f"{url}/v1/sweeps").status_code == 200
        assert httpx.post(f"{url}/v1/sweeps/{sweep}/cancel").status_code == 404
        slow.end.set()
        for thread in threads:
            thread.join()
    assert answers == [200, 200, 200]


def quietly(attempt: Callable[[], bool]) -> bool:
    """Whether it succeeds; a request that found room waits until its time is over."""
    try:
        return attempt()
    except httpx.ReadTimeout:
        return False


def test_a_service_that_stops_ends_its_plans(fakes: Fakes, app: FastAPI) -> None:
    app.state.context.stop()
    assert fakes.plans.stopped
    assert app.state.context.stopping.is_set()
