"""The scheduler under any sequence of events: sweeps that share cells, failures, crashes and losses of running calls,
cancel, pause, resume, retry, extend, lost artifacts, kills of the service and crashes within a commit.

``House.check`` runs after each event: counts add up, no cell is in the table twice, every cell with a result is in it,
the last event of a finished sweep is the terminal one. At the end all open calls are computed, and none may be left.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from sweeping import Crash, House

from creditgrid.core.errors import ConflictError
from creditgrid.core.states import State
from creditgrid.core.wire import Extension
from creditgrid.service.ledger import transitions

PICK = st.integers(0, 10**6)
DOCUMENTS = st.fixed_dictionaries(
    {
        "axes": st.fixed_dictionaries(
            {
                "group": st.lists(st.integers(0, 2), min_size=1, max_size=3, unique=True),
                "x": st.lists(st.integers(0, 2), min_size=1, max_size=3, unique=True),
            }
        ),
        "fixed": st.fixed_dictionaries({"base": st.sampled_from(["none", "ok"])}),
        "retry": st.fixed_dictionaries({"max": st.integers(0, 2), "backoff_s": st.just(0)}),
    },
    optional={"fail_fast": st.booleans(), "max_failed": st.integers(0, 4), "priority": st.integers(-1, 1)},
)


class Sweeps(RuleBasedStateMachine):
    """One data directory, and the services that are started and killed over it."""

    house: House

    @initialize()
    def open(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.house = House(Path(self.folder.name))
        self.sweeps: list[str] = []
        self.dead = False  # a service that was killed computes nothing

    def teardown(self) -> None:
        if not hasattr(self, "house") or self.dead:
            return
        for sweep in self.sweeps:
            if not self.house.state(sweep).finished:
                self.house.control.resume(sweep)
        self.house.drain()
        self.house.check()
        assert all(self.house.state(sweep).finished for sweep in self.sweeps)
        for sweep in self.sweeps:
            if self.house.state(sweep) in (State.SUCCEEDED, State.CACHED):
                assert set(self.house.counts(sweep)) <= {State.SUCCEEDED, State.CACHED}
        self.house.close()
        self.folder.cleanup()

    def in_flight(self) -> list[int]:
        return list(self.house.runner.calls)

    def one(self, pick: int) -> int:
        calls = self.in_flight()
        return calls[pick % len(calls)]

    @rule(document=DOCUMENTS)
    def submit(self, document: dict[str, Any]) -> None:
        self.sweeps.append(self.house.submit(**document))

    @rule(times=st.integers(1, 3))
    def step(self, times: int) -> None:
        self.house.step(times)

    @precondition(lambda self: self.in_flight())
    @rule(pick=PICK)
    def start(self, pick: int) -> None:
        self.house.runner.start_call(self.one(pick))

    @precondition(lambda self: self.in_flight())
    @rule(pick=PICK)
    def work(self, pick: int) -> None:
        self.house.runner.work(self.one(pick))

    @precondition(lambda self: self.in_flight())
    @rule(pick=PICK, transient=st.booleans())
    def fail(self, pick: int, transient: bool) -> None:
        self.house.runner.fail(self.one(pick), transient=transient)

    @precondition(lambda self: self.in_flight())
    @rule(pick=PICK)
    def die(self, pick: int) -> None:
        """The process of a call dies."""
        self.house.runner.crash(self.one(pick))

    @precondition(lambda self: self.in_flight())
    @rule()
    def lose(self) -> None:
        self.house.runner.lose()

    @rule(pick=PICK)
    def lose_artifact(self, pick: int) -> None:
        """An artifact is gone from the store while calls need it."""
        if keys := sorted(self.house.store.keys()):
            shutil.rmtree(self.house.store.path(keys[pick % len(keys)]))

    @precondition(lambda self: self.sweeps)
    @rule(pick=PICK)
    def cancel(self, pick: int) -> None:
        sweep = self.sweeps[pick % len(self.sweeps)]
        before = self.house.state(sweep)
        try:
            self.house.control.cancel(sweep)
        except ConflictError:
            assert before.finished
        else:
            assert not before.finished or before is State.CANCELLED
            assert self.house.state(sweep) is State.CANCELLED

    @precondition(lambda self: self.sweeps)
    @rule(pick=PICK)
    def retry(self, pick: int) -> None:
        sweep = self.sweeps[pick % len(self.sweeps)]
        before, counts = self.house.state(sweep), self.house.counts(sweep)
        again = [State.FAILED, State.SKIPPED] + [State.CANCELLED] * (before is State.FAILED)
        without = sum(counts.get(state, 0) for state in again)
        kept = self.keys_at(sweep, State.SUCCEEDED, State.CACHED)
        try:
            assert self.house.control.retry(sweep) == without > 0
        except ConflictError:
            assert not before.finished or without == 0
        assert self.keys_at(sweep, State.SUCCEEDED, State.CACHED) >= kept

    @precondition(lambda self: self.sweeps)
    @rule(pick=PICK, on=st.booleans())
    def pause(self, pick: int, on: bool) -> None:
        sweep = self.sweeps[pick % len(self.sweeps)]
        before = self.house.sweeps.get(sweep)
        try:
            changed = self.house.control.pause(sweep) if on else self.house.control.resume(sweep)
        except ConflictError:
            assert before.state.finished
        else:
            assert changed is (before.paused is not on)
            assert self.house.sweeps.get(sweep).paused is on

    @precondition(lambda self: self.sweeps)
    @rule(pick=PICK, xs=st.lists(st.integers(0, 4), min_size=1, max_size=3, unique=True))
    def extend(self, pick: int, xs: list[int]) -> None:
        sweep = self.sweeps[pick % len(self.sweeps)]
        before, numbered = self.house.sweeps.get(sweep), self.house.sql_tables.cell_index(sweep).to_pylist()
        try:
            added = self.house.control.extend(sweep, Extension(axes={"x": xs}))
        except ConflictError:
            assert before.state is State.CANCELLED
        else:
            assert self.house.sweeps.get(sweep).cells == before.cells + added
            assert self.house.sql_tables.cell_index(sweep).to_pylist()[: len(numbered)] == numbered

    def keys_at(self, sweep: str, *states: State) -> set[str]:
        return {cell.key for state in states for cell in self.house.cells.page(sweep, state, -1, 1000)[0]}

    @rule()
    def kill(self) -> None:
        """The service dies between two steps and is started again."""
        self.house.close()
        self.house = House(Path(self.folder.name))
        self.house.scheduler.recover()

    @rule(where=st.sampled_from(["append", "after", "end"]))
    def crash(self, where: str) -> None:
        """The service dies within a commit, if there is one to make, and is started again."""
        self.dead = True
        append, finish_call = self.house.results.append, transitions.finish_call

        def dying(before: Callable[..., Any] | None) -> Callable[..., None]:
            def die(*arguments: Any, **options: Any) -> None:
                if before is not None:
                    before(*arguments, **options)
                raise Crash

            return die

        with pytest.MonkeyPatch.context() as patch:
            if where == "end":
                patch.setattr(transitions, "finish_call", dying(finish_call))
            else:
                patch.setattr(self.house.results, "append", dying(append if where == "after" else None))
            try:
                self.house.step(2)
            except Crash:
                crashed = True
            else:
                crashed = False
        if crashed:
            self.kill()
        self.dead = False

    @invariant()
    def consistent(self) -> None:
        if hasattr(self, "house"):
            self.house.check()


Sweeps.TestCase.settings = settings(
    deadline=None, max_examples=10, stateful_step_count=25, suppress_health_check=list(HealthCheck)
)


class TestSweeps(Sweeps.TestCase):  # type: ignore[misc,name-defined]
    """Runs the machine."""
