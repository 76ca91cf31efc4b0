"""Logs of tasks: found after retries, splits and restores, and of the task that was asked for alone."""

from __future__ import annotations

import os
import time

import pytest
import sqlalchemy as sa
from sweeping import House

from creditgrid.core.errors import NotFoundError
from creditgrid.core.states import State
from creditgrid.service.ledger.tables import calls
from creditgrid.service.reading.logs import TAIL, Logs
from creditgrid.workers.call_log import BOUND, CallLog, log_path

both_databases = pytest.mark.usefixtures("url")


@pytest.fixture
def logs(house: House) -> Logs:
    return house.services.logs


def print_in(house: House, call: int, text: str) -> str:
    """Have the call in flight print; returns the key of its first task."""
    found = house.runner.calls[call]
    log = CallLog(log_path(house.store.root, found.log), found.attempt)
    log.write(text.encode())
    log.close()
    return str(found.tasks[0].key)


def text_of(logs: Logs, key: str) -> list[str]:
    return [line for line in logs.of_task(key).text.decode().splitlines() if not line.startswith("===")]


def only_call(house: House) -> int:
    (call,) = house.runner.calls
    return int(call)


def test_all_tasks_of_a_call_have_its_log(house: House, logs: Logs) -> None:
    sweep = house.submit(axes={"x": [1, 2]})
    house.step()
    print_in(house, only_call(house), "hello\n")
    keys = [cell.key for cell in house.cells.page(sweep, None, -1, 9)[0]]
    assert [text_of(logs, key) for key in keys] == [["hello"]] * 2
    assert not logs.of_task(keys[0]).ended
    house.drain()
    assert logs.of_task(keys[0]).ended
    shared = house.submit(axes={"x": [1]})  # cached: the log is that of the call that computed it
    assert text_of(logs, house.cells.page(shared, None, -1, 9)[0][0].key) == ["hello"]


def test_a_task_without_output_has_an_empty_log(house: House, logs: Logs) -> None:
    sweep = house.submit(axes={"x": [1]})
    key = house.cells.page(sweep, None, -1, 9)[0][0].key
    before = logs.of_task(key)
    assert (before.text, before.dropped, before.ended) == (b"", 0, False)
    house.drain()
    after = logs.of_task(key, before.next)
    assert (after.text, after.ended) == (b"", True)
    with pytest.raises(NotFoundError):
        logs.of_task("f" * 64)


def test_all_attempts_of_a_call_are_in_its_log(house: House, logs: Logs) -> None:
    house.submit(axes={"x": [1]}, retry={"backoff_s": 0})
    house.step()
    key = print_in(house, only_call(house), "first\n")
    house.runner.fail(only_call(house), transient=True)
    house.step(2)
    print_in(house, only_call(house), "second\n")
    assert text_of(logs, key) == ["first", "second"]
    assert b"=== attempt 2 on" in logs.of_task(key).text


@both_databases
def test_a_task_that_was_split_off_keeps_the_log_of_the_crash(house: House, logs: Logs) -> None:
    sweep = house.submit(axes={"x": [1, 2, 3]}, retry={"max": 5, "backoff_s": 0})
    for text in ("first\n", "second\n"):
        house.step(2)
        print_in(house, only_call(house), text)
        house.runner.crash(only_call(house))
    house.step(2)
    assert len(house.runner.calls) == 3
    own = {print_in(house, call, f"piece {call}\n"): f"piece {call}" for call in house.runner.calls}
    for cell in house.cells.page(sweep, None, -1, 9)[0]:
        assert text_of(logs, cell.key) == ["first", "second", own[cell.key]]


@both_databases
def test_a_task_that_a_user_runs_again_keeps_the_log_of_its_failure(house: House, logs: Logs) -> None:
    sweep = house.submit(axes={"x": [1]})
    for text in ("first\n", "second\n"):
        house.step()
        key = print_in(house, only_call(house), text)
        house.runner.fail(only_call(house))
        house.step()
        house.control.retry(sweep)
    house.step()
    print_in(house, only_call(house), "third\n")
    assert text_of(logs, key) == ["first", "second", "third"]
    assert [line[:13] for line in logs.of_task(key, tail=100).text.decode().splitlines()][-1:] == ["third"]


def test_a_follower_continues_in_the_call_that_has_the_task_now(house: House, logs: Logs) -> None:
    sweep = house.submit(axes={"x": [1]})
    house.step()
    key = print_in(house, only_call(house), "first\n")
    seen = logs.of_task(key)
    house.runner.fail(only_call(house))
    house.step()
    house.control.retry(sweep)
    house.step()
    print_in(house, only_call(house), "second\n")
    rest = logs.of_task(key, seen.next)
    assert rest.text.splitlines()[1:] == [b"second"]
    assert logs.of_task(key, rest.next).text == b""


def test_a_log_of_another_ledger_is_not_shown(house: House, logs: Logs) -> None:
    """A call of a restored copy may have the number of one that this folder has seen before; its log has no number."""
    house.submit(axes={"x": [1]})
    house.step()
    key = print_in(house, only_call(house), "mine\n")
    with house.ledger.write() as connection:  # as the copy would have named it
        connection.execute(calls.update().values(log="0" * 32))
    assert logs.of_task(key).text == b""


def test_the_newest_text_goes_before_that_of_earlier_calls(house: House, logs: Logs) -> None:
    sweep = house.submit(axes={"x": [1]})
    for text in ("old\n" * (BOUND // 4), "new\n" * (BOUND // 8)):
        house.step()
        key = print_in(house, only_call(house), text)
        house.runner.fail(only_call(house))
        house.step()
        house.control.retry(sweep)
    found = text_of(logs, key)
    assert found.count("new") == BOUND // 8
    assert 0 < found.count("old") <= BOUND // 8
    assert len(logs.of_task(key).text) < BOUND + 1000


def test_the_end_is_cut_between_characters(house: House, logs: Logs) -> None:
    house.submit(axes={"x": [1]})
    house.step()
    key = print_in(house, only_call(house), "\N{SNOWMAN}" * 100)
    assert logs.of_task(key, tail=100).text == ("\N{SNOWMAN}" * 33).encode()
    assert logs.of_task(key, tail=0).text == b""
    print_in(house, only_call(house), "later\n")
    position = logs.of_task(key, tail=0).next
    assert logs.of_task(key, position).text == b""


def test_what_is_not_utf_8_is_replaced(house: House, logs: Logs) -> None:
    house.submit(axes={"x": [1]})
    house.step()
    found = house.runner.calls[only_call(house)]
    log = CallLog(log_path(house.store.root, found.log), 1)
    log.write(b"\xff\x00\x1b[31m\xc3")
    log.close()
    text = logs.of_task(found.tasks[0].key).text.splitlines()[1]
    assert text.decode() == "\N{REPLACEMENT CHARACTER}\0\x1b[31m"


@pytest.mark.parametrize("position", ["x", "0" * 32, f"{'0' * 32}-1-x", "../../etc-1-1", f"{'0' * 32}-1-1\n"])
def test_a_position_that_is_none_is_refused(house: House, logs: Logs, position: str) -> None:
    sweep = house.submit(axes={"x": [1]})
    key = house.cells.page(sweep, None, -1, 9)[0][0].key
    with pytest.raises(ValueError, match="is no position in a log"):
        logs.of_task(key, position)
    assert logs.of_task(key, f"{'0' * 32}-5-5").text == b""  # of a call that it does not have


@both_databases
def test_the_logs_of_a_sweep_are_those_with_text_the_latest_first(house: House, logs: Logs) -> None:
    sweep = house.submit(axes={"group": [0, 1, 2]}, fixed={"x": 1})
    other = house.submit(axes={"group": [3]}, fixed={"x": 1})
    house.step()
    first, second, quiet, others = sorted(house.runner.calls)
    keys = [print_in(house, call, "text\n") for call in (first, second, others)]
    print_in(house, quiet, "")
    for age, call in enumerate((second, first)):
        at = time.time() - age
        os.utime(log_path(house.store.root, house.runner.calls[call].log), (at, at))
    found = logs.of_sweep(sweep, 10)
    assert [(view.call, view.key, view.bytes) for view in found] == [(second, keys[1], 5), (first, keys[0], 5)]
    assert {view.kind for view in found} == {"noop"}
    assert [view.call for view in logs.of_sweep(sweep, 1)] == [second]
    assert [view.call for view in logs.of_sweep(other, 10)] == [others]
    with pytest.raises(NotFoundError):
        logs.of_sweep("none", 10)


@both_databases
def test_a_failure_shows_the_end_of_its_log(house: House, logs: Logs) -> None:
    sweep = house.submit(axes={"x": [1]})
    house.step()
    print_in(house, only_call(house), "start\n" + "x\n" * TAIL + "why it failed\n")
    house.runner.fail(only_call(house))
    house.step()
    (failure,) = house.failures.of(sweep)
    assert failure.log.endswith("x\nwhy it failed\n")
    assert "start" not in failure.log
    assert len(failure.log) <= TAIL
    assert house.cells.page(sweep, State.FAILED, -1, 9)[0][0].key == failure.key


def test_calls_of_an_older_ledger_have_no_log(house: House, logs: Logs) -> None:
    sweep = house.submit(axes={"x": [1]})
    with house.ledger.write() as connection:
        connection.execute(calls.update().values(log=sa.null()))
    house.drain()
    key = house.cells.page(sweep, None, -1, 9)[0][0].key
    assert (logs.of_task(key).text, logs.of_task(key).next) == (b"", "")
