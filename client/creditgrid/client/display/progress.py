"""Showing a sweep's progress on standard error: live bars on a terminal, else a line now and then."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from creditgrid.client.connection import usual_url
from creditgrid.client.display.quantities import duration
from creditgrid.client.display.tables import STYLES, counts_text, standing_text
from creditgrid.client.watch import updates
from creditgrid.core.errors import CreditGridError
from creditgrid.core.states import RESULT, State
from creditgrid.core.wire import EventView, SweepView

if TYPE_CHECKING:
    from creditgrid.client.sweep import Sweep

BAR_WIDTH = 40
LINE_S = 5.0
"""Without a terminal, a line at most this often."""
PAUSED, HOLDING = "paused", ("paused", "degraded")
"""Conditions under which a sweep does not go on by itself, or not as fast as it could."""
SILENT_S = 10.0
"""Bars that have heard nothing for so long say so."""
TOLD = ("call.failed", "call.retried", "sweep.cancelled", "sweep.paused", "sweep.resumed", "sweep.extended")
"""Events that a person wants to hear of at once."""
MAX_ACTIVE = 4
"""Running calls that are shown."""


def show(
    sweep: Sweep,
    timeout: float | None = None,
    detachable: bool = True,
    console: Console | None = None,
    patient: bool = True,
) -> SweepView:
    """Show the sweep until it is through, and return its last view.

    Ctrl-C ends the showing and not the sweep: it says how to come back, unless the service ends too (not
    ``detachable``). A service that is away for a while, as when it is started again, is waited for if ``patient``.

    Raises:
        WaitTimeout: if the sweep is not through after ``timeout`` seconds.
        KeyboardInterrupt: after Ctrl-C.
    """
    console = console or Console(stderr=True, highlight=False, markup=False, emoji=False)
    display = _Bars(sweep.view, console) if console.is_terminal else _Lines(console)
    gone = False

    def away(error: CreditGridError) -> None:
        nonlocal gone
        if not gone:
            display.say(f"{error}; it is waited for", "yellow")
        gone = True

    try:
        with display:
            for view, events in updates(sweep, timeout, away, patient):
                if gone:
                    display.say(f"{sweep.connection.url} answers again", "yellow")
                    gone = False
                display.update(view, events)
    except KeyboardInterrupt:
        if detachable:
            console.print(f"sweep {sweep.id} goes on; come back with: {come_back(sweep)}", soft_wrap=True)
        raise
    return sweep.view


def failed_text(sweep: Sweep, tracebacks: bool = False) -> str:
    """Why a sweep that is through is not a success: its causes, with their tracebacks or where those are."""
    view = sweep.view
    without = sum(n for state, n in view.counts.items() if state not in RESULT)
    lines = [f"sweep {view.id} is {view.state}: {without:,} of {view.cells:,} cells have no result"]
    lines += [f"  {found.type}: {found.message}" for found in view.conditions]
    for failure in sweep.failures():
        lines.append(f"  {failure.kind}: {failure.cause} ({failure.count:,} failed)")
        lines += [failure.traceback] if tracebacks else [f"  its traceback: creditgrid logs {view.id}{at(sweep)}"]
        lines += [f"  run it here: {failure.command}{at(sweep)}"]
    return "\n".join(lines)


def come_back(sweep: Sweep) -> str:
    """The command that watches ``sweep``; it names the service if it is not the usual one."""
    return f"creditgrid watch {sweep.id}{at(sweep)}"


def at(sweep: Sweep) -> str:
    """What a command about ``sweep`` ends with: nothing where its service is the usual one, else where that is."""
    url = sweep.connection.url
    return "" if url == usual_url() else f" --url {url}"


def bar(counts: Mapping[State, int], width: int = BAR_WIDTH) -> Text:
    """A bar of ``width`` characters (8 or more), split by state; each state that is there gets one at least."""
    shares = {state: counts[state] for state in STYLES if counts.get(state)}
    total = sum(shares.values())
    if not total:
        return Text("━" * width, style=STYLES[State.PENDING])
    spare = width - len(shares)
    widths = {state: 1 + n * spare // total for state, n in shares.items()}
    largest = max(shares, key=lambda state: shares[state])
    widths[largest] += width - sum(widths.values())
    return Text.assemble(*(("━" * widths[state], STYLES[state]) for state in widths))


def status_line(view: SweepView) -> str:
    """The view in one line."""
    through = sum(n for state, n in view.counts.items() if state.finished)
    parts = [f"{view.state}: {through:,}/{view.cells:,} cells"]
    for kind, counts in view.tasks.items():
        done = sum(n for state, n in counts.items() if state.finished)
        if done < sum(counts.values()):
            parts.append(f"{kind} {done:,}/{sum(counts.values()):,}")
    failed = view.counts.get(State.FAILED, 0)
    parts += [f"{failed:,} failed"] if failed else []
    return " · ".join([*parts, *_outlook(view, 0.0)])


def _outlook(view: SweepView, since_s: float) -> list[str]:
    """Why the sweep does not go on, if something holds it up, else how long it will take from ``since_s`` ago on.

    A sweep that does not go on has no time left to tell: it would stand still, or count down to nothing.
    """
    if view.state.finished:
        return []
    held_up = [f"{found.type}: {found.message}" for found in view.conditions if found.type in HOLDING]
    if view.paused and not any(found.type == PAUSED for found in view.conditions):
        held_up.append(PAUSED)
    if held_up or view.remaining_s is None:
        return held_up
    return [f"about {duration(max(0.0, view.remaining_s - since_s))} left"]


class _Bars:
    """Live bars: cells, and the tasks below them."""

    def __init__(self, view: SweepView, console: Console) -> None:
        self._view, self._heard = view, time.monotonic()
        self._live = Live(console=console, refresh_per_second=4, get_renderable=self._render)

    def __enter__(self) -> None:
        self._live.start()

    def __exit__(self, *exc: object) -> None:
        self._live.stop()

    def say(self, text: str, style: str) -> None:
        self._live.console.print(text, style=style, soft_wrap=True)

    def update(self, view: SweepView, events: list[EventView]) -> None:
        for event in _told(events):
            self.say(_line(event), "red")
        self._view, self._heard = view, time.monotonic()

    def _render(self) -> RenderableType:
        view = self._view
        until = view.finished_at or datetime.now(UTC)
        times = duration((until - view.created_at).total_seconds())
        silence = time.monotonic() - self._heard
        silent = silence > SILENT_S and not view.state.finished
        outlook = [f"nothing heard for {duration(silence)}"] if silent else _outlook(view, silence)
        grid = Table.grid(padding=(0, 2))
        for kind, counts in {**view.tasks, "cells": view.counts}.items():
            through = sum(n for state, n in counts.items() if state.finished)
            grid.add_row(kind, bar(counts), f"{through:,}/{sum(counts.values()):,}", counts_text(counts))
        times = ", ".join([times, *outlook])
        lines: list[RenderableType] = [
            Text.assemble((view.name, "bold"), f"  {view.id}  ", standing_text(view), f"  {times}"),
            grid,
        ]
        for activity in [] if view.state.finished else view.active[:MAX_ACTIVE]:
            done = f" {activity.done:,}/{activity.total:,}" if activity.total else ""
            lines.append(Text(f"  {activity.kind}{done} {activity.note}".rstrip(), style="dim"))
        return Group(*lines)


class _Lines:
    """A line when something changed, for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last, self._at = "", -LINE_S

    def __enter__(self) -> None:
        pass

    def __exit__(self, *exc: object) -> None:
        pass

    def say(self, text: str, style: str) -> None:
        self._console.print(text, style=style, soft_wrap=True)

    def update(self, view: SweepView, events: list[EventView]) -> None:
        for event in _told(events):
            self.say(_line(event), "")
        line = status_line(view)
        if line != self._last and (view.state.finished or time.monotonic() - self._at >= LINE_S):
            self._console.print(line, soft_wrap=True)
            self._last, self._at = line, time.monotonic()


def _told(events: list[EventView]) -> list[EventView]:
    return [event for event in events if event.type in TOLD]


def _line(event: EventView) -> str:
    return f"{event.at.astimezone():%H:%M:%S} {event.data.get('message', event.type)}"
