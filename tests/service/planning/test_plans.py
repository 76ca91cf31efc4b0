"""A plan is hidden until it is whole, and nothing is left of one that does not come to its end."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sweeping import Crash, House, both_databases, quick, wait_until

from creditgrid.core import naming
from creditgrid.core import plan as core_plan
from creditgrid.core.errors import BusyError, ConflictError, NotFoundError, PlanCancelled, SpecError
from creditgrid.core.spec.text import SpecText
from creditgrid.core.states import State
from creditgrid.core.wire import Extension
from creditgrid.service.ledger import tables
from creditgrid.service.ledger.transitions import discard_plan
from creditgrid.service.planning import plans

CHUNK = 2
LARGE: dict[str, Any] = {"axes": {"group": [1, 2, 3], "x": [1, 2]}, "fixed": {"base": "ok"}}
"""Six cells in three chunks."""
PART: dict[str, Any] = {"axes": {"group": [1, 3], "x": [2, 7]}, "fixed": {"base": "ok"}}
"""Two of them, and two more."""


class InStep:
    """A ``ReadAhead`` that reads nothing ahead, so that a test decides what is written before something happens."""

    ready = False

    def __init__(self, items: Any, abandoned: threading.Event) -> None:
        self.items = items

    def __enter__(self) -> InStep:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __iter__(self) -> Iterator[Any]:
        return iter(self.items)


@pytest.fixture
def house(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    quick(monkeypatch)
    monkeypatch.setattr(naming, "CHUNK", CHUNK)
    monkeypatch.setattr(core_plan, "CHUNK", CHUNK)
    monkeypatch.setattr(plans, "ReadAhead", InStep)
    made = House(tmp_path, url=url)
    yield made
    made.close()


def at_step(house: House, step: int, what: Callable[[], object]) -> None:
    """Let this happen before chunk ``step`` of the next plan: 0 is its header."""
    left = [step]

    def meanwhile() -> None:
        left[0] -= 1
        if left[0] == -1:
            house.meanwhile = lambda: None
            what()

    house.meanwhile = meanwhile


def content(house: House) -> dict[str, list[Any]]:
    """All rows of the ledger, without when and by which number."""
    left_out = {"calls": ("id",), "cells": ("call",), "stages": ("call",), "tasks": ("call",), "sweeps": ("seq",)}
    found = {}
    with house.ledger.read() as connection:
        for table in tables.metadata.sorted_tables:
            columns = [c for c in table.columns if c.name not in left_out.get(table.name, ())]
            query = sa.select(*columns)
            if table.name == "counts":
                query = query.where(table.c.n != 0)
            found[table.name] = sorted(map(str, connection.execute(query).all()))
    return found


def refuse() -> None:
    raise SpecError([])


@both_databases
def test_a_sweep_is_invisible_until_its_plan_is_whole(house: House) -> None:
    seen = []

    def look() -> None:
        seen.append(len(house.sweeps.page(None, None, 10)[0]))
        assert house.sweeps.open_totals() == ({}, {})
        house.step(2)
        assert house.runner.history == []

    house.meanwhile = look
    sweep = house.submit(**LARGE)
    assert seen == [0] * 4  # a header and three chunks
    house.meanwhile = lambda: None
    assert house.counts(sweep) == {State.PENDING: 6}
    house.drain()
    assert house.state(sweep) is State.SUCCEEDED
    house.check()


@both_databases
@pytest.mark.parametrize("step", [0, 1, 2, 3])
@pytest.mark.parametrize("before", [{}, PART], ids=["in an empty ledger", "beside another sweep"])
def test_nothing_is_left_of_a_plan_that_is_refused(house: House, step: int, before: dict[str, Any]) -> None:
    if before:
        house.submit(**before)
    present = content(house)
    at_step(house, step, refuse)
    with pytest.raises(SpecError):
        house.submit(**LARGE)
    assert content(house) == present
    sweep = house.submit(**LARGE)
    house.drain()
    assert house.state(sweep) is State.SUCCEEDED
    house.check()


@both_databases
@pytest.mark.parametrize("refused", [True, False])
@pytest.mark.parametrize("step", [1, 2, 3])
def test_sweeps_share_tasks_with_a_plan_that_is_not_whole(house: House, step: int, refused: bool) -> None:
    others = []

    def submit_another() -> None:
        others.append(house.submit(**PART))
        house.step(3)
        if refused:
            refuse()

    at_step(house, step, submit_another)
    if refused:
        with pytest.raises(SpecError):
            house.submit(**LARGE)
    else:
        others.append(house.submit(**LARGE))
    house.drain()
    assert {house.state(sweep) for sweep in others} <= {State.SUCCEEDED, State.CACHED}
    cells = [task.key for call in house.runner.history if call.kind == "noop" for task in call.tasks]
    assert len(cells) == len(set(cells)), "a cell ran twice"
    house.check()


@both_databases
@pytest.mark.parametrize("end", ["succeed", "fail", "cancel"])
@pytest.mark.parametrize("step", [1, 2, 3])
def test_what_a_plan_shares_may_end_before_it_is_whole(house: House, step: int, end: str) -> None:
    first = house.submit(**PART)
    house.step()

    def end_first() -> None:
        if end == "cancel":
            house.control.cancel(first)
            return
        while not house.state(first).finished:
            for call in list(house.runner.calls):
                if end == "fail" and house.runner.calls[call].kind == "noop":
                    house.runner.fail(call)
                else:
                    house.runner.work(call)
            house.step()

    at_step(house, step, end_first)
    sweep = house.submit(**LARGE)
    house.drain()
    assert sum(house.counts(sweep).values()) == 6
    assert house.state(sweep) in ((State.SUCCEEDED, State.FAILED) if end == "fail" else (State.SUCCEEDED,))
    house.check()


@both_databases
@pytest.mark.parametrize("step", [1, 2, 3])
def test_an_interrupted_plan_is_undone_at_the_next_start(house: House, step: int) -> None:
    shared = house.submit(**PART)
    present = content(house)

    def die() -> None:
        house.plans.stop()  # a process that dies undoes nothing
        raise Crash

    at_step(house, step, die)
    with pytest.raises(Crash):
        house.submit(**LARGE)
    again = house.restarted()
    assert [view.id for view in again.sweeps.page(None, None, 10)[0]] == [shared]
    again.plans.start()
    wait_until(lambda: planned(again))
    left = content(again)
    remembered = {row for row in left["tasks"] if "'cancelled'" in row and "noop_base" in row}
    left["tasks"] = [row for row in left["tasks"] if row not in remembered]
    assert left == present
    sweep = again.submit(**LARGE)
    again.drain()
    assert {again.state(sweep), again.state(shared)} <= {State.SUCCEEDED, State.CACHED}
    again.check()
    again.close()


def planned(house: House) -> bool:
    with house.ledger.read() as connection:
        return connection.scalar(sa.select(sa.func.count()).where(~tables.sweeps.c.planned)) == 0


@both_databases
@pytest.mark.parametrize("step", [0, 1, 2])
def test_a_plan_is_cancelled_by_its_id(house: House, step: int) -> None:
    present = content(house)

    def cancel() -> None:
        (underway,) = house.plans.underway()
        assert (underway.name, underway.cells) == ("" if step == 0 else "n", max(0, step - 2) * CHUNK)
        house.plans.cancel(underway.id, lambda owner: None)

    at_step(house, step, cancel)
    with pytest.raises(PlanCancelled, match="was cancelled"):
        house.submit(**LARGE)
    assert content(house) == present
    assert house.plans.underway() == []
    with pytest.raises(NotFoundError, match="no submission 'nope'"):
        house.plans.cancel("nope", lambda owner: None)


@both_databases
@pytest.mark.parametrize("step", [1, 2, 3])
def test_an_extension_and_a_retry_are_whole_or_not_there(house: House, step: int) -> None:
    sweep = house.submit(axes={"group": [1], "x": [1, 2]}, fixed={"base": "ok", "behaviour": "raise"})
    house.drain()
    house.check()
    present = content(house)
    for change in (
        lambda: house.control.extend(sweep, Extension(axes={"group": [2, 3]})),
        lambda: house.control.retry(sweep),
    ):
        at_step(house, min(step, 1), refuse)
        with pytest.raises(SpecError):
            change()
        assert content(house) == present
    assert house.control.extend(sweep, Extension(axes={"group": [2, 3]})) == 4
    assert house.sweeps.get(sweep).cells == 6
    house.drain()
    assert house.control.retry(sweep) == 6
    house.drain()
    house.check()


def test_two_changes_of_one_sweep_wait_for_each_other(house: House) -> None:
    sweep = house.submit(axes={"x": [1]})
    added: list[int] = []

    def extend(x: int) -> None:
        added.append(house.control.extend(sweep, Extension(axes={"x": [x]})))

    threads = [threading.Thread(target=extend, args=(x,)) for x in range(2, 8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert added == [1] * 6
    assert house.sweeps.get(sweep).cells == 7
    house.drain()
    house.check()


def test_a_repeated_key_waits_for_the_first_request(house: House) -> None:
    text = SpecText.of({"name": "n", "experiment": "noop", **LARGE})
    found: list[tuple[str, bool]] = []
    threads = [
        threading.Thread(target=lambda: found.append(house.control.submit(text, ("key", "body")))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({sweep for sweep, _ in found}) == 1
    assert sorted(new for _, new in found) == [False, False, False, True]


def test_a_call_that_grows_leaves_the_backlog_of_a_sweep_that_shares_it_right(house: House) -> None:
    at_step(house, 3, lambda: house.submit(axes={"x": [0, 1]}))
    house.submit(axes={"x": {"range": [40]}})
    house.check()
    house.drain()


def test_no_backlog_is_left_of_a_plan_that_shared_a_call(house: House) -> None:
    first = house.submit(**PART)

    def end_and_refuse() -> None:
        house.drain_sweep(first)
        refuse()

    at_step(house, 3, end_and_refuse)
    with pytest.raises(SpecError):
        house.submit(**LARGE)
    with house.ledger.read() as connection:
        assert set(connection.scalars(sa.select(tables.backlog.c.sweep))) == {first}


def test_a_stopped_service_plans_nothing(house: House) -> None:
    house.plans.stop()
    with pytest.raises(BusyError, match="is stopping"):
        house.submit(**LARGE)


def test_a_cancelled_sweep_is_not_extended_by_a_plan_that_began_before(house: House) -> None:
    sweep = house.submit(**PART)
    at_step(house, 1, lambda: house.control.cancel(sweep))
    with pytest.raises(ConflictError, match="was cancelled"):
        house.control.extend(sweep, Extension(axes={"group": [9]}))
    assert house.sweeps.get(sweep).cells == 4
    house.check()


def test_a_plan_is_undone_in_parts(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each transaction is short: with a limit of one row it takes one for each call and for each cell."""
    monkeypatch.setattr("creditgrid.service.ledger.transitions.CHUNK_OF_PLAN", 1)
    steps = []

    def count(*arguments: Any) -> bool:
        steps.append(arguments)
        return discard_plan(*arguments)

    monkeypatch.setattr("creditgrid.service.ledger.transitions.discard_plan", count)
    at_step(house, 3, refuse)
    with pytest.raises(SpecError):
        house.submit(**LARGE)
    assert len(steps) == 6  # two calls, two cells, one stage, the sweep
    assert planned(house)


@both_databases
def test_parts_that_are_read_ahead_are_written_together(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick(monkeypatch)
    monkeypatch.setattr(naming, "CHUNK", CHUNK)
    house = House(tmp_path, url=url)
    sweeps = [house.submit(axes={"group": [n], "x": {"range": [40]}}, fixed={"base": "ok"}) for n in range(3)]
    house.drain()
    assert {house.state(sweep) for sweep in sweeps} == {State.SUCCEEDED}
    house.check()
    present = content(house)
    at_step(house, 15, refuse)
    with pytest.raises(SpecError):
        house.submit(axes={"group": [9], "x": {"range": [40]}}, fixed={"base": "ok"})
    assert content(house) == present
    house.close()
