"""What tasks print, on the command line: with events, of one task, as it grows, and harmless on a terminal."""

from __future__ import annotations

import io
import json
import sys
from datetime import UTC, datetime

import pytest

from creditgrid.client import events
from creditgrid.client.cli import logs
from creditgrid.client.cli import main as cli
from creditgrid.client.display.untrusted_text import harmless
from creditgrid.core.states import State
from creditgrid.core.wire import LogView

KEYS = ["c" * 64, "cd" + "0" * 62]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "QUIET_S", 0.2)
    monkeypatch.setattr(logs, "LOOK_S", 0.1)


def test_lines_of_several_tasks_name_them(connected, run) -> None:
    connected.add()
    connected.emit("s1", "sweep.created", "made")
    connected.prints(KEYS[0], "one\ntwo")
    connected.prints(KEYS[1], "three\n")
    code, out, _ = run("logs", "s1")
    assert code == 0
    created, *lines = out.splitlines()
    assert created.endswith("made")
    assert sorted(line for line in lines if line) == [
        "train cccccccccccc | one",
        "train cccccccccccc | two",
        "train cd0000000000 | three",
    ]
    code, out, _ = run("logs", "s1", "-o", "json")
    found = [json.loads(line) for line in out.splitlines()]
    assert found[1:3] == [
        {"type": "log", "kind": "train", "key": KEYS[1], "text": "three"},
        {"type": "log", "kind": "train", "key": KEYS[0], "text": "one"},
    ]


@pytest.mark.parametrize("start", [KEYS[1], KEYS[1][:2]])
def test_one_task_prints_its_text_alone(connected, run, start: str) -> None:
    connected.add()
    connected.prints(KEYS[0], "not this\n")
    connected.prints(KEYS[1], "=== attempt 1 ===\n\x1b[31mred\n")
    assert run("logs", "s1", "--task", start) == (0, "=== attempt 1 ===\n\x1b[31mred\n", "")
    _, out, _ = run("logs", "s1", "--task", start, "-f", "-o", "json")
    assert json.loads(out) == {"type": "log", "key": KEYS[1], "text": "=== attempt 1 ===\n\x1b[31mred\n"}


@pytest.mark.parametrize(
    ("start", "why"), [("c", "2 tasks start with it"), ("ff", "no stage or log"), ("", "no stage")]
)
def test_a_key_that_names_no_task_is_refused(connected, run, start: str, why: str) -> None:
    connected.add()
    for key in KEYS:
        connected.prints(key, "text\n")
    code, _, err = run("logs", "s1", "--task", start)
    assert code == 2
    assert why in err
    assert run("logs", "s1", "--task", "f" * 64)[0] == 4


def test_a_sweep_is_followed_with_what_its_tasks_print(connected, run, monkeypatch: pytest.MonkeyPatch) -> None:
    connected.add()
    connected.emit("s1", "sweep.created", "made")
    connected.prints(KEYS[0], "one\nt", ended=False)
    steps = iter(
        [lambda: connected.prints(KEYS[0], "wo\nlast"), lambda: connected.emit("s1", "sweep.finished", "done")]
    )
    shown = logs._Lines._print

    def print_and_continue(self, view, line: str) -> None:
        shown(self, view, line)
        next(steps, lambda: None)()

    monkeypatch.setattr(logs._Lines, "_print", print_and_continue)
    code, out, _ = run("logs", "s1", "-f")
    assert code == 0
    lines = [line.rpartition(" | ")[2] if " | " in line else line.split()[-1] for line in out.splitlines() if line]
    assert lines[0] == "made"
    assert [line for line in lines if line != "done"][1:] == ["one", "two", "last"]
    assert "done" in lines


def test_a_failure_shows_the_end_of_the_log(connected, run) -> None:
    connected.add()
    failure = {"cause": "E", "kind": "fit", "count": 1, "skipped": 0, "attempt": 1, "host": "h", "key": "k"}
    failure |= {"command": "creditgrid run-task k", "traceback": "Traceback: here\n"}
    log = "".join(f"line {number}\n" for number in range(50)) + "\x1b[2Jclear\n"
    connected.failures = [failure | {"log": log}]
    _, out, _ = run("show", "s1")
    assert "  | line 49" in out
    assert "  | \\x1b[2Jclear" in out
    assert "line 40" not in out
    assert "Traceback" not in out
    _, out, _ = run("logs", "s1")
    assert "  | line 0\n" in out
    assert "Traceback: here" in out
    connected.failures = [failure | {"log": log, "traceback": log}]  # a process that died leaves its log
    assert run("logs", "s1")[1].count("line 49") == 1


def test_a_line_that_never_ends_is_shown_while_it_grows(capsys: pytest.CaptureFixture[str]) -> None:
    class Reader:
        def __init__(self) -> None:
            self.texts = [" 0%\r 1%\r 2", "%\r 3%\r", "\n", "\r 4%\r 5%", "x" * 10_000, "end"]

        def new(self, _: object) -> list[tuple[LogView, str]]:
            state = State.SUCCEEDED if len(self.texts) == 1 else State.RUNNING
            view = LogView(call=1, kind="fit", key=KEYS[0], state=state, bytes=1, written_at=datetime.now(UTC))
            return [(view, self.texts.pop(0))]

    printer, reader, shown = logs._Lines("json"), Reader(), []
    while reader.texts:
        printer.print(reader, failed=True)  # type: ignore[arg-type]
        shown.append([json.loads(line)["text"] for line in capsys.readouterr().out.splitlines()])
    assert shown == [[" 0%\r 1%"], [" 2%"], [" 3%\r"], ["\r 4%"], [" 5%" + "x" * 10_000], ["end"]]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_no_control_characters(connected, pauses, monkeypatch: pytest.MonkeyPatch) -> None:
    connected.add()
    connected.prints(KEYS[0], "\x1b]0;title\x07\x9b2J\tred\r 10%\r 20%\r\n\u202eevil\n")
    connected.emit("s1", "call.failed", "\x1b[2Jgone")
    for arguments in (["--task", KEYS[0]], []):
        monkeypatch.setattr(sys, "stdout", out := Terminal())
        assert cli.main(["logs", "s1", *arguments]) == 0
        lines = out.getvalue().splitlines(keepends=True)
        if not arguments:
            assert lines.pop(0).endswith("call.failed      \\x1b[2Jgone\n")
        text = "".join(line.removeprefix("train cccccccccccc | ") for line in lines)
        assert text.rstrip("\n") == "\\x1b]0;title\\x07\\x9b2J\tred\n 10%\n 20%\n\\u202eevil"


def test_harmless_text_stays_as_it_is() -> None:
    text = "Grüße \N{SNOWMAN} 数\t|\n"
    assert harmless(text) == text
    assert harmless("a\x00b\x7f") == "a\\x00b\\x7f"
