"""Output of threads that run calls: each call gets its own, and everything is as before afterwards."""

from __future__ import annotations

import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from creditgrid.workers.call_log import log_path
from creditgrid.workers.log_text import read_log
from creditgrid.workers.thread_output import ThreadOutput

log = logging.getLogger("a.plugin")


@contextmanager
def started() -> Iterator[ThreadOutput]:
    """Within a test: pytest replaces the streams between a fixture and its test."""
    before = sys.stdout, sys.stderr, logging.getLogger().level, list(logging.getLogger().handlers)
    found = ThreadOutput()
    found.start()
    yield found
    found.stop()
    assert (sys.stdout, sys.stderr, logging.getLogger().level, list(logging.getLogger().handlers)) == before


def text_of(root: Path, name: str) -> list[str]:
    return read_log(log_path(root, name)).data.decode().splitlines()[1:]


def warned() -> None:
    warnings.warn("careful", UserWarning, stacklevel=1)


@pytest.mark.filterwarnings("default::UserWarning")
def test_all_that_python_prints_is_in_the_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warnings, "showwarning", lambda message, *_: print(f"warned: {message}", file=sys.stderr))
    with started() as output:
        for name in ("one", "two"):  # a warning is shown in each call
            with output.captured(tmp_path, name, 1):
                print("out")
                print("err", file=sys.stderr)
                sys.stdout.writelines(["a\n", "b\n"])
                sys.stdout.buffer.write(b"bytes\n")
                sys.stdout.buffer.flush()
                sys.stdout.flush()
                log.info("logged %s", "twice")
                log.debug("not shown")
                warned()
        print("outside")
    for name in ("one", "two"):
        *printed, record, warning = text_of(tmp_path, name)
        assert (printed, warning) == (["out", "err", "a", "b", "bytes"], "warned: careful")
        assert record.endswith("INFO a.plugin: logged twice")
    assert capsys.readouterr().out == "outside\n"


def test_threads_do_not_mix(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    both = threading.Barrier(2)

    def run(output: ThreadOutput, name: str) -> None:
        with output.captured(tmp_path, name, 1):
            for number in range(100):
                both.wait(10)
                print(name, number)

    with started() as output:
        threads = [threading.Thread(target=run, args=[output, name]) for name in ("one", "two")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for name in ("one", "two"):
        assert text_of(tmp_path, name) == [f"{name} {number}" for number in range(100)]
    assert capsys.readouterr().out == ""


def test_without_a_log_output_goes_where_it_went(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with started() as output, output.captured(tmp_path, "", 1):
        print("no name")
    (tmp_path / "logs").write_text("a file where the folder should be")
    with started() as output, output.captured(tmp_path, "name", 1):
        print("no folder")
    assert capsys.readouterr().out == "no name\nno folder\n"


def test_a_call_without_output_leaves_nothing(tmp_path: Path) -> None:
    with started() as output, output.captured(tmp_path, "name", 1):
        pass
    assert list((tmp_path / "logs").iterdir()) == []


def test_what_others_have_replaced_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    output = ThreadOutput()
    output.start()
    sys.stdout = other = sys.__stdout__
    output.stop()
    output.stop()
    assert sys.stdout is other
