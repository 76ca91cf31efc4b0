"""The command that shows what happens in a sweep, and what its tasks print."""

from __future__ import annotations

import json
import queue
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from creditgrid.client.cli.options import Output, OutputOption, SweepArgument, Token, Url, console, note, open_client
from creditgrid.client.errors import BadSetting
from creditgrid.core.states import State

if TYPE_CHECKING:
    from creditgrid.client.logs import SweepLogs
    from creditgrid.client.sweep import Sweep
    from creditgrid.core.wire import EventView, LogView

KEY_DIGITS = 64
SHORT = 12
"""Digits of a key that are shown before its lines."""
LOOK_S = 1.0
"""Between two looks at the logs of a sweep."""
LONGEST_REST = 2**13
"""Characters without a line end that wait for the rest of their line."""


def logs(
    sweep: SweepArgument,
    *,
    task: Annotated[
        str | None,
        typer.Option("--task", metavar="KEY", help="Only what this task prints; the start of its key is enough."),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Continue until the sweep or the task is finished.")
    ] = False,
    url: Url = None,
    token: Token = None,
    output: OutputOption = "table",
) -> None:
    """Print a sweep's events, what its tasks print, then the failures with their tracebacks.

    JSON: one object per line.
    """
    with open_client(url, token) as client:
        found = client.sweep(sweep)
        with _interruptible(found):
            if task is not None:
                _print_task(found, _full_key(found, task), follow=follow, output=output)
            else:
                _print_sweep(found, client.url, follow=follow, output=output)


def _print_sweep(found: Sweep, url: str, *, follow: bool, output: Output) -> None:
    from creditgrid.client.connection import url_option
    from creditgrid.client.display.tables import failures_text
    from creditgrid.client.logs import SweepLogs

    printer, reader = _Lines(output), SweepLogs(found.connection, found.id)
    events = _until_finished(found, printer, reader) if follow else found.history()
    for event in events:
        _print_event(event, output)
    printer.print(reader, failed=False)
    printer.finish()
    failures = found.failures()
    if output == "table":
        console().print(failures_text(failures, tracebacks=True, option=url_option(url)))
    else:
        for failure in failures:
            typer.echo(json.dumps({"type": "failure"} | failure.model_dump(mode="json"), ensure_ascii=False))


def _print_task(found: Sweep, key: str, *, follow: bool, output: Output) -> None:
    from creditgrid.client.logs import LogReader

    reader = LogReader(found.connection, key)
    for text in reader.follow() if follow else [reader.read()]:
        if output == "json":
            typer.echo(json.dumps({"type": "log", "key": key, "text": text}, ensure_ascii=False))
        else:
            sys.stdout.write(_shown(text))
            sys.stdout.flush()


def _until_finished(found: Sweep, printer: _Lines, reader: SweepLogs) -> Iterator[EventView]:
    """The sweep's events as they happen; in between, what its tasks print is printed."""
    arrived: queue.Queue[EventView | BaseException | None] = queue.Queue(1000)

    def receive() -> None:
        try:
            for event in found.events():
                arrived.put(event)
            arrived.put(None)
        except BaseException as error:  # raised again in the command's thread
            arrived.put(error)

    threading.Thread(target=receive, name=f"events of {found.id}", daemon=True).start()
    looked = time.monotonic()
    while True:
        try:
            event = arrived.get(timeout=max(0.05, looked + LOOK_S - time.monotonic()))
        except queue.Empty:
            pass
        else:
            if event is None:
                return
            if isinstance(event, BaseException):
                raise event
            yield event
        if time.monotonic() - looked >= LOOK_S:
            printer.print(reader, failed=True)
            looked = time.monotonic()


class _Lines:
    """Prints logs of several tasks: each line after the kind and the start of the key of its task."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._rest: dict[int, tuple[LogView, str]] = {}

    def print(self, reader: SweepLogs, *, failed: bool) -> None:
        """What was written since the last time; of failed calls, without ``failed``, if their logs were read before."""
        for view, text in reader.new(None if failed else State.FAILED):
            _, rest = self._rest.pop(view.call, (view, ""))
            *lines, rest = (rest + text).split("\n")
            last = rest.rfind("\r", 1, -1)  # a progress bar returns to the start of its line, and may never end it
            if last > 0:
                lines.append(rest[:last])
                rest = rest[last + 1 :]
            if rest and (view.state.finished or len(rest) > LONGEST_REST):
                lines.append(rest)
            elif rest:
                self._rest[view.call] = view, rest
            for line in lines:
                self._print(view, line)

    def finish(self) -> None:
        """Print lines without an end."""
        for view, rest in self._rest.values():
            self._print(view, rest)
        self._rest.clear()

    def _print(self, view: LogView, line: str) -> None:
        if self._output == "json":
            found = {"type": "log", "kind": view.kind, "key": view.key, "text": line}
            typer.echo(json.dumps(found, ensure_ascii=False))
        else:
            for shown in _shown(line.removesuffix("\r")).split("\n"):
                typer.echo(f"{view.kind} {view.key[:SHORT]} | {shown}")


def _shown(text: str) -> str:
    """The text as it is for a file or a program, and without control characters for a terminal."""
    from creditgrid.client.display.untrusted_text import harmless

    return harmless(text) if sys.stdout.isatty() else text


def _full_key(found: Sweep, start: str) -> str:
    from creditgrid.client.logs import SweepLogs

    if len(start) >= KEY_DIGITS:
        return start
    known = {view.key for view in SweepLogs(found.connection, found.id).views()}
    known |= {failure.key for failure in found.failures()} | {task.key for task in found.tasks()}
    matching = sorted(key for key in known if start and key.startswith(start))
    if len(matching) != 1:
        several = f"{len(matching)} tasks start with it" if matching else "no stage or log of the sweep starts with it"
        raise BadSetting(f"--task {start!r}: {several}; give the whole key")
    return matching[0]


@contextmanager
def _interruptible(found: Sweep) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        note(f"sweep {found.id} continues")
        raise


def _print_event(event: EventView, output: Output) -> None:
    if output == "json":
        typer.echo(event.model_dump_json())
    else:
        message = _shown(str(event.data.get("message", "")))  # it may hold the error of a task
        typer.echo(f"{event.at.astimezone():%Y-%m-%d %H:%M:%S}  {event.type:<16} {message}")
