"""What users ask of sweeps: submit, pause, resume, extend, cancel, retry."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import creditgrid_noop as noop
import pytest
import sqlalchemy as sa
from sweeping import House, both_databases, groups, one_cell_groups

from creditgrid.core.errors import ConflictError, ForbiddenError, NotFoundError, SpecError
from creditgrid.core.spec.text import SpecText
from creditgrid.core.states import State
from creditgrid.core.wire import TERMINAL_EVENT, Extension, Role
from creditgrid.service.ledger import tables
from creditgrid.service.ledger.counts import sweeps_needing
from creditgrid.service.people.actor import Actor

SUCCEEDED, CACHED, FAILED, CANCELLED = State.SUCCEEDED, State.CACHED, State.FAILED, State.CANCELLED
SKIPPED, PENDING, RUNNING = State.SKIPPED, State.PENDING, State.RUNNING

pytestmark = both_databases


# -- submit ----------------------------------------------------------------------------------------------------------


def test_a_refused_spec_writes_nothing(house: House) -> None:
    bad: list[dict[str, Any]] = [
        {"axes": {"x": []}},
        {"axes": {"q": [1]}},
        {"experiment": "nope"},
        {"axes": {"x": [1]}, "fixed": {"y": float("nan")}},
        {"axes": {"x": {"range": [10**9]}}},
        {"axes": {"x": [1]}, "resources": {"noop": {"cpu": 1}}},
    ]
    for document in bad:
        with pytest.raises(SpecError):
            house.submit(**document)
    with house.ledger.read() as connection:
        for table in (tables.sweeps, tables.calls, tables.tasks, tables.cells, tables.events):
            assert connection.scalar(sa.select(sa.func.count()).select_from(table)) == 0


def test_a_timeout_of_an_unknown_kind_is_refused(house: House) -> None:
    for timeout, pointer in (({"trian": 5}, "/timeout_s/trian"), ({"measure": 0}, "/timeout_s/measure")):
        with pytest.raises(SpecError) as refused:
            house.submit(**one_cell_groups(1, timeout_s=timeout))
        assert [fault.pointer for fault in refused.value.faults] == [pointer]


def test_an_idempotency_key_submits_once(house: House) -> None:
    document = {"name": "n", "experiment": "noop", "axes": {"x": [1]}}
    sweep, new = house.control.submit(SpecText.of(document), ("key", "body"))
    assert new
    assert house.control.submit(SpecText.of(document), ("key", "body")) == (sweep, False)
    with pytest.raises(ConflictError, match="was used with another body"):
        house.control.submit(SpecText.of(document), ("key", "another body"))
    other, new = house.control.submit(SpecText.of(document), ("another key", "body"))
    assert new
    assert other != sweep
    house.drain()


def test_the_key_of_a_refused_spec_may_be_used_again(house: House) -> None:
    with pytest.raises(SpecError):
        house.control.submit(SpecText.of({"name": "n", "experiment": "nope"}), ("key", "bad"))
    _, new = house.control.submit(SpecText.of({"name": "n", "experiment": "noop", "axes": {"x": [1]}}), ("key", "good"))
    assert new
    house.drain()


def test_a_sweep_that_shares_a_running_call_is_running(house: House) -> None:
    house.submit(**one_cell_groups(1))
    house.step()
    house.runner.start_call(next(iter(house.runner.calls)))
    house.step()
    two = house.submit(**one_cell_groups(1))
    assert (house.state(two), house.counts(two)) == (RUNNING, {RUNNING: 1})
    house.drain()


# -- pause and resume ------------------------------------------------------------------------------------------------


def test_running_calls_of_a_paused_sweep_finish_and_no_other_starts(house: House) -> None:
    sweep = house.submit(**one_cell_groups(3))
    house.step()
    runs, *_ = house.runner.calls
    house.runner.start_call(runs)
    house.step()
    assert house.control.pause(sweep)
    house.step(2)
    assert list(house.runner.calls) == [runs]  # calls that had not started were taken back
    house.runner.work(runs)
    house.step(3)
    assert not house.runner.calls
    view = house.sweeps.get(sweep)
    assert (view.paused, view.counts, view.state) == (True, {SUCCEEDED: 1, PENDING: 2}, RUNNING)
    assert [condition.type for condition in view.conditions] == ["paused"]
    assert not house.control.pause(sweep)
    assert house.control.resume(sweep)
    assert not house.control.resume(sweep)
    house.drain()
    view = house.sweeps.get(sweep)
    assert (view.paused, view.counts, view.conditions) == (False, {SUCCEEDED: 3}, [])
    types = house.event_types(sweep)
    assert types.count("sweep.paused") == types.count("sweep.resumed") == 1
    assert max(call.attempt for call in house.runner.history) == 1  # a call that is taken back uses no attempt
    assert "call.retried" not in types


def test_a_sweep_paused_at_once_starts_nothing_even_after_a_restart(house: House) -> None:
    sweep = house.submit(**one_cell_groups(2))
    house.control.pause(sweep)
    house.step(3)
    again = house.restarted()
    again.scheduler.recover()
    again.step(3)
    assert not house.runner.history
    assert not again.runner.history
    again.control.resume(sweep)
    again.drain()
    assert again.counts(sweep) == {SUCCEEDED: 2}
    again.close()


def test_calls_of_a_paused_sweep_that_another_needs_run_and_count_for_both(house: House) -> None:
    one = house.submit(**one_cell_groups(3))
    two = house.submit(**one_cell_groups(2, 1))
    house.control.pause(one)
    house.drain_sweep(two)
    assert house.state(two) is SUCCEEDED
    assert house.counts(one) == {SUCCEEDED: 2, PENDING: 1}
    house.control.resume(one)
    house.drain()
    assert house.counts(one) == {SUCCEEDED: 3}
    assert sorted([call.tasks[0].params["group"] for call in house.runner.history]) == [0, 1, 2]


def test_of_two_paused_sweeps_the_resumed_one_runs_what_they_share(house: House) -> None:
    one, two = house.submit(**one_cell_groups(2)), house.submit(**one_cell_groups(2))
    house.control.pause(one)
    house.control.pause(two)
    house.step(2)
    assert not house.runner.history
    house.control.resume(two)
    house.drain()
    assert house.state(one) is house.state(two) is SUCCEEDED  # the paused one shares all its calls


def test_an_ended_or_unknown_sweep_is_neither_paused_nor_resumed(house: House) -> None:
    sweep = house.submit(**one_cell_groups(1))
    house.control.pause(sweep)
    house.control.cancel(sweep)
    assert not house.sweeps.get(sweep).paused
    for ask in (house.control.pause, house.control.resume):
        with pytest.raises(ConflictError, match="has ended"):
            ask(sweep)
        with pytest.raises(NotFoundError):
            ask("nope")
    assert not house.control.cancel(sweep)
    assert house.event_types(sweep).count(TERMINAL_EVENT) == 1


# -- extend ----------------------------------------------------------------------------------------------------------


def test_an_extension_adds_cells_and_leaves_the_others(house: House) -> None:
    sweep = house.submit(axes={"x": [1, 2], "group": [0, 1]})
    house.drain()
    before = house.sql_tables.cell_index(sweep).to_pylist()
    rows = {row["cell"]: row for row in house.rows()}
    assert house.control.extend(sweep, Extension(axes={"x": [3]}, include=[{"x": 9}])) == 3
    assert house.state(sweep) is PENDING
    assert house.counts(sweep) == {SUCCEEDED: 4, PENDING: 3}
    house.drain()
    view = house.sweeps.get(sweep)
    assert (view.counts, view.cells) == ({SUCCEEDED: 7}, 7)
    assert view.spec is not None
    assert view.spec["axes"] == {"x": [1, 2, 3], "group": [0, 1]}
    assert view.spec["include"] == [{"x": 9}]
    assert house.sql_tables.cell_index(sweep).to_pylist()[:4] == before
    found, _ = house.cells.page(sweep, None, -1, 100)
    assert [(cell.params["x"], cell.params["group"]) for cell in found] == [
        (1, 0), (1, 1), (2, 0), (2, 1), (3, 0), (3, 1), (9, 0)
    ]  # fmt: skip
    assert {row["cell"]: row for row in house.rows() if row["cell"] in rows} == rows
    assert len(house.runner.history) == 4
    assert house.event_types(sweep).count("sweep.extended") == 1
    assert house.event_types(sweep).count(TERMINAL_EVENT) == 2


def test_running_calls_continue_when_their_sweep_is_extended(house: House) -> None:
    sweep = house.submit(axes={"x": [1, 2]}, fixed={"base": "ok"})
    house.step()
    (base,) = house.runner.calls
    house.runner.start_call(base)
    house.step()
    house.control.extend(sweep, Extension(axes={"x": [3]}))
    assert house.runner.calls.keys() == {base}
    house.drain()
    assert house.counts(sweep) == {SUCCEEDED: 3}
    assert Counter(call.kind for call in house.runner.history) == {"noop_base": 1, "noop": 2}
    (stage,) = house.tasks.page(sweep, None, "", 9)[0]
    assert stage.state is SUCCEEDED  # the extension did not plan it again


def test_extensions_add_up_and_a_retry_finds_each_cell_by_its_number(house: House) -> None:
    sweep = house.submit(axes={"x": [1], "behaviour": ["ok"]})
    house.control.extend(sweep, Extension(axes={"x": [2]}))
    house.control.extend(sweep, Extension(axes={"behaviour": ["raise"]}, include=[{"x": 7, "behaviour": "raise"}]))
    house.drain()
    assert sum(house.counts(sweep).values()) == 5
    failed, _ = house.cells.page(sweep, FAILED, -1, 100)
    assert sorted(cell.params["x"] for cell in failed) == [1, 2, 7]
    before = house.sql_tables.cell_index(sweep).to_pylist()
    assert house.control.retry(sweep) == 3
    house.drain()
    assert house.sql_tables.cell_index(sweep).to_pylist() == before
    assert house.counts(sweep) == {SUCCEEDED: 2, FAILED: 3}


def test_an_extension_without_a_new_cell_changes_nothing(house: House) -> None:
    sweep = house.submit(axes={"x": [1, 2]})
    house.drain()
    view, events = house.sweeps.get(sweep), house.event_types(sweep)
    assert house.control.extend(sweep, Extension(axes={"x": [2]})) == 0
    assert house.sweeps.get(sweep) == view
    assert house.event_types(sweep) == events


def test_new_cells_that_another_sweep_computed_are_cached(house: House) -> None:
    house.submit(axes={"x": [1, 2, 3]})
    house.drain()
    sweep = house.submit(axes={"x": [1]})
    house.control.extend(sweep, Extension(axes={"x": {"range": [2, 4, 1]}}))
    assert house.state(sweep) is CACHED
    assert house.counts(sweep) == {CACHED: 3}


@pytest.mark.parametrize(
    ("extension", "pointer", "text"),
    [
        ({"axes": {"y": [1.0]}}, "/axes/y", "no axis 'y'"),
        ({"axes": {"bsae": ["ok"]}}, "/axes/bsae", "no axis 'bsae'"),
        ({"axes": {"base": ["ok"]}}, "/axes/base", "base is fixed in this sweep"),
        ({"axes": {"x": [3, "four"]}}, "/axes/x/1", "valid integer"),
        ({"axes": {"x": {"range": [0.5, 2.5, 1]}}}, "/axes/x", "valid integer"),
        ({"axes": {"x": []}}, "/axes/x", "empty"),
        ({"include": [{"x": 4}, {"z": 1}]}, "/include/1/z", "no parameter 'z'"),
        ({}, "", "new values in axes, or cells in include"),
    ],
)
def test_an_invalid_extension_is_refused_whole(
    house: House, extension: dict[str, Any], pointer: str, text: str
) -> None:
    sweep = house.submit(axes={"x": [1, 2]}, fixed={"base": "ok"}, include=[{"x": 5}])
    before = house.sweeps.get(sweep)
    with pytest.raises(SpecError) as refused:
        house.control.extend(sweep, Extension.model_validate(extension))
    fault = refused.value.faults[0]
    assert fault.pointer == pointer
    assert text in fault.detail
    assert house.sweeps.get(sweep) == before
    house.drain()


def test_zipped_axes_are_extended_together(house: House) -> None:
    sweep = house.submit(axes={"x": [1, 2], "y": [1.0, 2.0]}, zip=[["x", "y"]])
    with pytest.raises(SpecError):
        house.control.extend(sweep, Extension(axes={"x": [3]}))
    assert house.control.extend(sweep, Extension(axes={"x": [3], "y": [3.0]})) == 1
    house.drain()
    assert sorted((row["x"], row["y"]) for row in house.rows()) == [(1, 1.0), (2, 2.0), (3, 3.0)]


def test_a_paused_sweep_that_is_extended_takes_no_call_from_a_running_one(house: House) -> None:
    one = house.submit(**one_cell_groups(2), priority=1)
    house.control.pause(one)
    two = house.submit(**one_cell_groups(2))
    house.control.extend(one, Extension(axes={"group": [7]}))
    house.check()
    house.drain_sweep(two)
    assert house.counts(one) == {SUCCEEDED: 2, PENDING: 1}
    house.control.resume(one)
    house.drain()


def test_a_cancelled_sweep_is_not_extended(house: House) -> None:
    sweep = house.submit(axes={"x": [1]})
    house.control.cancel(sweep)
    with pytest.raises(ConflictError, match="was cancelled: submit a new one"):
        house.control.extend(sweep, Extension(axes={"x": [3]}))
    with pytest.raises(NotFoundError):
        house.control.extend("nope", Extension(axes={"x": [3]}))


def test_a_sweep_that_is_cancelled_while_its_extension_is_planned_stays_cancelled(house: House) -> None:
    sweep = house.submit(axes={"x": [1]})
    house.meanwhile = lambda: house.control.cancel(sweep)
    with pytest.raises(ConflictError, match="was cancelled"):
        house.control.extend(sweep, Extension(axes={"x": [2]}))
    assert house.state(sweep) is CANCELLED


# -- cancel ----------------------------------------------------------------------------------------------------------


def test_only_an_open_sweep_can_be_cancelled(house: House) -> None:
    with pytest.raises(NotFoundError, match="there is no sweep 'nope'"):
        house.control.cancel("nope")
    sweep = house.submit(axes={"x": [1]})
    house.drain()
    with pytest.raises(ConflictError, match="has ended \\(succeeded\\)"):
        house.control.cancel(sweep)


def test_calls_of_a_cancelled_owner_wait_for_the_paused_sweep_that_needs_them(house: House) -> None:
    one, two = house.submit(**one_cell_groups(2)), house.submit(**one_cell_groups(2))
    house.control.pause(two)
    house.control.cancel(one)
    house.step(3)
    assert not house.runner.history
    assert house.counts(two) == {PENDING: 2}
    house.control.resume(two)
    house.drain()
    assert house.counts(two) == {SUCCEEDED: 2}
    assert house.counts(one) == {CANCELLED: 2}


def test_thousands_of_calls_are_cancelled_quickly(house: House) -> None:
    sweep = house.submit(**one_cell_groups(3000))
    other = house.submit(**one_cell_groups(5))
    house.step()
    in_flight = list(house.runner.calls)
    start = time.process_time()
    house.control.cancel(sweep)
    assert time.process_time() - start < 2
    house.step()
    assert sorted(house.runner.cancelled) == sorted(set(in_flight) - set(sorted(house.call_states())[:5]))
    assert house.counts(sweep) == {CANCELLED: 3000}
    house.drain()
    assert house.counts(other) == {SUCCEEDED: 5}


# -- retry -----------------------------------------------------------------------------------------------------------


def test_retry_runs_again_what_failed_and_nothing_more(house: House) -> None:
    sweep = house.submit(**groups(3))
    house.step()
    good, bad, cancelled = house.runner.calls
    house.runner.work(good)
    house.runner.fail(bad)
    house.step(2)
    with pytest.raises(ConflictError, match="cancel it or wait for its end before a retry"):
        house.control.retry(sweep)
    house.control.cancel(sweep)
    house.step(2)
    assert house.counts(sweep) == {SUCCEEDED: 2, FAILED: 2, CANCELLED: 2}
    before = house.sql_tables.cell_index(sweep).to_pylist()
    assert house.control.retry(sweep) == 2
    assert house.state(sweep) is PENDING
    assert house.counts(sweep) == {SUCCEEDED: 2, PENDING: 2, CANCELLED: 2}
    house.drain()
    assert house.counts(sweep) == {SUCCEEDED: 4, CANCELLED: 2}
    assert house.state(sweep) is CANCELLED
    assert house.sql_tables.cell_index(sweep).to_pylist() == before
    assert len(house.rows()) == 4
    assert house.event_types(sweep).count(TERMINAL_EVENT) == 2
    with pytest.raises(ConflictError, match=r"no cell .* has failed"):
        house.control.retry(sweep)
    with pytest.raises(NotFoundError):
        house.control.retry("nope")
    assert cancelled


def test_a_retry_runs_failed_stages_again_and_leaves_the_others(house: House) -> None:
    sweep = house.submit(axes={"x": [1, 2]}, fixed={"base": "ok"}, include=[{"x": 3, "base": "raise", "group": 9}])
    house.drain()
    assert house.counts(sweep) == {SUCCEEDED: 2, SKIPPED: 1}
    assert len(house.tasks.page(sweep, None, "", 9)[0]) == 2
    house.control.retry(sweep)
    house.step()
    assert [call.tasks[0].params for call in house.runner.calls.values()] == [{"base": "raise"}]
    house.drain()
    stages = {stage.params["base"]: stage.state for stage in house.tasks.page(sweep, None, "", 9)[0]}
    assert stages == {"ok": SUCCEEDED, "raise": FAILED}
    assert house.counts(sweep) == {SUCCEEDED: 2, SKIPPED: 1}


def test_what_an_older_installation_planned_is_refused_and_a_retry_computes_the_new_version(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = {"axes": {"x": [1, 2]}, "fixed": {"base": "ok"}}
    sweep = house.submit(**document)
    old = house.sql_tables.cell_index(sweep)["cell"].to_pylist()
    monkeypatch.setitem(noop.BASE.__dict__, "version_by", lambda params: 2 if params.get("base") == "ok" else 1)
    house.drain()
    assert house.counts(sweep) == {SKIPPED: 2}
    (failure,) = house.failures.of(sweep)
    assert "is a task of version 1, and this installation computes version 2" in failure.cause
    assert "submit or retry the sweep" in failure.cause
    house.control.retry(sweep)
    house.drain()
    assert (house.state(sweep), house.counts(sweep)) == (State.SUCCEEDED, {SUCCEEDED: 2})
    assert set(house.sql_tables.cell_index(sweep)["cell"].to_pylist()).isdisjoint(old)
    assert [(row["kind_version"], row["parent_versions"]) for row in house.rows()] == [(1, '{"base":2}')] * 2
    assert house.counts(house.submit(**document)) == {CACHED: 2}


def test_a_retry_finds_what_another_sweep_has_computed_meanwhile(house: House) -> None:
    one = house.submit(**groups(1))
    house.step()
    house.runner.fail(next(iter(house.runner.calls)))
    house.step()
    house.submit(**groups(1))
    house.drain()
    house.control.retry(one)
    assert house.state(one) is CACHED
    assert house.counts(one) == {CACHED: 2}


def test_a_sweep_that_stopped_at_a_failure_says_why_and_a_retry_runs_all_that_it_stopped(house: House) -> None:
    document = {"axes": {"group": [0, 1], "x": [1]}, "fixed": {"behaviour": "raise"}, "fail_fast": True}
    sweep = house.submit(**document)
    house.step()
    house.runner.work(next(iter(house.runner.calls)))
    house.step(2)
    view = house.sweeps.get(sweep)
    assert view.counts == {FAILED: 1, CANCELLED: 1}
    assert [(c.type, c.message) for c in view.conditions] == [("stopped", "fail_fast: stopped at the first failure")]
    assert house.control.retry(sweep) == 2
    assert house.sweeps.get(sweep).conditions == []
    house.drain()


def test_a_retried_sweep_does_not_wait_for_what_a_user_cancelled(house: House) -> None:
    one = house.submit(**one_cell_groups(2))
    two = house.submit(**one_cell_groups(2))
    house.step()
    first, second = house.runner.calls
    house.runner.fail(first)
    house.step()
    house.control.cancel(two)
    house.control.retry(two)  # the failed cell, without the cancelled one
    house.control.pause(one)
    house.check()
    with house.ledger.read() as connection:
        assert sweeps_needing(connection, second) == [one]
    house.drain_sweep(two)
    assert house.counts(two) == {SUCCEEDED: 1, CANCELLED: 1}
    house.control.resume(one)
    house.drain()


# -- whose sweep it is -----------------------------------------------------------------------------------------------

ANNA, BEN, READER = Actor("anna", Role.SUBMIT), Actor("ben", Role.SUBMIT), Actor("rita", Role.READ)
ADMIN = Actor("admin", Role.ADMIN)


def test_a_sweep_belongs_to_who_submitted_it(house: House) -> None:
    sweep, _ = house.control.submit(SpecText.of({"name": "n", "experiment": "noop", "axes": {"x": [1]}}), actor=ANNA)
    assert house.sweeps.get(sweep).owner == "anna"
    assert house.sweeps.get(house.submit(axes={"x": [2]})).owner is None
    house.drain()


def test_only_the_owner_and_an_admin_change_a_sweep(house: House) -> None:
    sweep, _ = house.control.submit(SpecText.of({"name": "n", "experiment": "noop", "axes": {"x": [1]}}), actor=ANNA)
    nobodys = house.submit(axes={"x": [2]})
    control, more = house.control, Extension(axes={"x": [3]})
    for actor in (BEN, READER):
        for target in (sweep, nobodys):
            for ask in (control.cancel, control.pause, control.resume, control.retry):
                with pytest.raises(ForbiddenError, match=f"role {'read' if actor is READER else 'submit'}"):
                    ask(target, actor)
            with pytest.raises(ForbiddenError):
                control.extend(target, more, actor)
    with pytest.raises(ForbiddenError, match="needs a token of role submit"):
        control.submit(SpecText.of({"name": "n", "experiment": "noop", "axes": {"x": [1]}}), actor=READER)
    assert control.pause(sweep, ANNA)
    assert control.resume(sweep, ADMIN)
    assert control.extend(sweep, more, ANNA) == 1
    assert control.cancel(sweep, ANNA)
    assert control.cancel(nobodys, ADMIN)


def test_an_idempotency_key_is_one_persons(house: House) -> None:
    document = {"name": "n", "experiment": "noop", "axes": {"x": [1]}}
    annas, _ = house.control.submit(SpecText.of(document), ("monday", "body"), ANNA)
    bens, new = house.control.submit(SpecText.of(document), ("monday", "body"), BEN)
    assert new
    assert annas != bens
    assert house.control.submit(SpecText.of(document), ("monday", "body"), ANNA) == (annas, False)
    with pytest.raises(ConflictError, match="was used with another body"):
        house.control.submit(SpecText.of(document), ("monday", "other"), ANNA)
    house.drain()
