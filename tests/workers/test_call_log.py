"""The log of a call: what is kept, in which order, and how much of it."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from creditgrid.workers import call_log
from creditgrid.workers.call_log import BOUND, HEAD, CallLog, abandoned_logs, call_logs, compact_log, trim_log
from creditgrid.workers.log_text import read_log

SPACE = HEAD + BOUND + 4 * call_log.SLACK


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "logs" / "name"


@pytest.fixture(params=["holes", "no holes"])
def _either_file_system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "no holes":

        def refused(*_: object) -> None:
            raise OSError(errno.EOPNOTSUPP, "no holes")

        monkeypatch.setattr(call_log, "_punch", refused)


def write(path: Path, *texts: bytes, attempt: int = 1) -> None:
    log = CallLog(path, attempt)
    for text in texts:
        log.write(text)
    log.close()


def lines(path: Path) -> list[bytes]:
    return read_log(path).data.splitlines()


def test_a_log_says_where_its_text_was_written(path: Path) -> None:
    write(path, b"one\n", b"two\n")
    head, *rest = lines(path)
    assert head.startswith(b"=== attempt 1 on ")
    assert f"process {os.getpid()}, 20".encode() in head
    assert rest == [b"one", b"two"]


def test_what_is_written_after_the_end_reaches_no_other_file(path: Path, tmp_path: Path) -> None:
    log = CallLog(path, 1)
    log.write(b"in time\n")
    descriptor = log.descriptor
    log.close()
    with (tmp_path / "other").open("wb") as other:
        assert other.fileno() == descriptor  # the lowest that is free
        log.write(b"late\n")
    assert (tmp_path / "other").read_bytes() == b""
    assert lines(path)[1:] == [b"in time"]


def test_a_call_without_output_leaves_no_file(path: Path) -> None:
    write(path)
    assert list(path.parent.iterdir()) == []
    assert read_log(path).data == b""


def test_an_empty_file_serves_another_call(path: Path) -> None:
    first = CallLog(path, 1)
    assert first.put_by()
    assert (read_log(path).data, [found.name for found in call_logs(path.parent.parent)]) == (b"", [])
    other = path.with_name("other")
    assert first.take(other, 7)
    first.write(b"text\n")
    assert not first.put_by()
    first.close()
    assert lines(other)[0].startswith(b"=== attempt 7 on")
    assert lines(other)[1:] == [b"text"]
    assert not path.exists()


def test_an_empty_file_never_replaces_a_log(path: Path) -> None:
    spare = CallLog(path.with_name("spare"), 1)
    assert spare.put_by()
    write(path, b"of an earlier attempt\n")
    assert not spare.take(path, 2)
    spare.close()
    assert lines(path)[1:] == [b"of an earlier attempt"]
    assert [found.name for found in path.parent.iterdir()] == ["name"]


def test_empty_files_of_dead_processes_are_found(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spare = CallLog(path, 1)
    assert spare.put_by()
    assert abandoned_logs(path.parent.parent) == []
    monkeypatch.setattr("psutil.pid_exists", lambda pid: False)
    assert abandoned_logs(path.parent.parent) == [spare.path]
    spare.close()
    assert abandoned_logs(path.parent.parent) == abandoned_logs(path) == []


def test_while_nothing_is_written_the_log_is_empty(path: Path) -> None:
    log = CallLog(path, 1)
    empty = read_log(path)
    assert empty.data == b""
    log.write(b"text\n")
    text = read_log(path, empty.end, empty.shown)
    assert text.data.endswith(b"===\ntext\n")
    log.close()


def test_each_attempt_has_a_line_once_there_is_text(path: Path) -> None:
    (quiet := CallLog(path, 1)).write(b"")
    os.close(quiet.descriptor)  # it was killed
    write(path, b"second without an end", attempt=2)
    write(path, attempt=3)
    write(path, b"fourth\n", attempt=4)
    found = lines(path)
    assert [line.split(b" on ")[0] for line in found] == [
        b"=== attempt 2",
        b"second without an end",
        b"=== attempt 3",
        b"=== attempt 4",
        b"fourth",
    ]


def test_a_log_is_read_from_a_position_on(path: Path) -> None:
    log = CallLog(path, 1)
    seen, at = b"", (0, 0)
    for text in (b"one\n", b"t", b"wo\n", b"", "drei \N{SNOWMAN}\n".encode()[:7], "\N{SNOWMAN}\n".encode()[2:]):
        log.write(text)
        part = read_log(path, *at)
        seen, at = seen + part.data, (part.end, part.shown)
    log.close()
    write(path, b"again\n", attempt=2)
    seen += read_log(path, *at).data
    assert seen == read_log(path).data
    assert seen.count(b"===\n") == 2
    assert "drei \N{SNOWMAN}\n".encode() in seen


@pytest.mark.usefixtures("_either_file_system")
def test_the_oldest_text_is_dropped_and_the_log_says_so(path: Path) -> None:
    log = CallLog(path, 1)
    for number in range(40_000):
        log.write(f"{number:099}\n".encode())
        assert number % 1000 or os.fstat(log.descriptor).st_blocks * 512 <= 2 * SPACE
    log.close()
    found = read_log(path)
    note, head, first, *_, last = found.data.splitlines()
    assert note.endswith(f" bytes before this were dropped: a call keeps its last {BOUND:,} ===".encode())
    assert head.startswith(b"=== attempt 1 on")
    assert (len(first), int(last)) == (99, 39_999)
    assert found.dropped == 100 * int(first)
    assert len(found.data) <= BOUND + 1000
    assert path.stat().st_blocks * 512 <= 2 * SPACE
    assert (found.end, read_log(path, found.end, found.shown).data) == (4_000_000, b"")


@pytest.mark.usefixtures("_either_file_system")
def test_the_newest_attempt_never_loses_to_an_older_one(path: Path) -> None:
    write(path, b"old\n" * 2**20, attempt=1)
    write(path, b"new\n" * 2**10, attempt=2)
    found = lines(path)
    assert found[-(2**10) :] == [b"new"] * 2**10
    assert found[-(2**10) - 1].startswith(b"=== attempt 2")
    write(path, b"newest\n" * 2**20, attempt=3)
    assert set(lines(path)[2:]) == {b"newest"}


def test_a_follower_that_is_slow_hears_what_it_missed(path: Path) -> None:
    log = CallLog(path, 1)
    log.write(b"a\n")
    seen = read_log(path)
    log.write(b"b\n" * 2**20)
    rest = read_log(path, seen.end, seen.shown)
    assert rest.dropped == BOUND
    assert rest.data.splitlines()[1:] == [b"b"] * (BOUND // 2)
    log.close()


def test_a_line_longer_than_the_bound_keeps_its_end(path: Path) -> None:
    write(path, b"x" * 5 * BOUND, b"end")
    found = read_log(path)
    assert found.data.endswith(b"xxxend")
    assert BOUND - 10 < len(found.data) < BOUND + 1000


def test_the_end_alone_is_read(path: Path) -> None:
    write(path, b"line of text\n" * 10_000)
    found = read_log(path, limit=100)
    assert found.dropped == 0
    assert set(found.data.splitlines()[1:]) == {b"line of text"}
    assert len(found.data) < 300


def test_binary_text_is_kept_as_it_is(path: Path) -> None:
    data = bytes(range(256)) * 10 + b"\0\n"
    write(path, data)
    assert read_log(path).data.endswith(data)


def test_a_child_that_outlives_the_call_is_bounded_by_path(path: Path) -> None:
    log = CallLog(path, 1)
    child = [sys.executable, "-c", "import os; os.write(1, b'z' * 2**22); os.write(1, b'last words')"]
    subprocess.run(child, stdout=log.descriptor, check=True)
    os.close(log.descriptor)
    assert path.stat().st_blocks * 512 > SPACE
    trim_log(path)
    assert path.stat().st_blocks * 512 <= SPACE
    assert read_log(path).data.endswith(b"zlast words")
    trim_log(path.with_name("none"))


def test_a_log_without_its_hole_reads_the_same(path: Path) -> None:
    write(path, b"".join(b"%015d\n" % number for number in range(2**18)))
    write(path, b"more\n", attempt=2)
    before, at, position = read_log(path), path.stat().st_mtime_ns, (4 * 2**20, 1)
    rest = read_log(path, *position)
    compact_log(path)
    assert path.stat().st_size <= HEAD + BOUND
    assert (path.stat().st_mtime_ns, path.stat().st_mode & 0o777) == (at, 0o600)
    assert read_log(path) == before
    assert read_log(path, *position) == rest
    write(path, b"last\n", attempt=3)
    assert read_log(path, before.end, before.shown).data.splitlines()[1:] == [b"last"]
    assert [found.name for found in path.parent.iterdir()] == ["name"]


def test_a_damaged_head_costs_the_attempts_alone(path: Path) -> None:
    write(path, b"text\n")
    with path.open("r+b") as file:
        file.write(b"{[")
    assert read_log(path).data == b"text\n"
    write(path, b"more\n", attempt=2)
    assert read_log(path).data.splitlines()[::2] == [b"text", b"more"]


def test_many_attempts_fit_the_head(path: Path) -> None:
    for attempt in range(100):
        write(path, b"text\n", attempt=attempt)
    found = lines(path)
    assert found.count(b"text") == 100
    assert found[-2].startswith(b"=== attempt 99 ")


def test_a_folder_that_cannot_be_written_is_an_error_of_the_system(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("no folder")
    with pytest.raises(OSError, match="Not a directory"):
        CallLog(tmp_path / "logs" / "name", 1)
