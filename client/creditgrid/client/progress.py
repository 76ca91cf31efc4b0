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
from creditgrid.client.quantities import duration
from creditgrid.client.render import STYLES, counts_text, state_text
from creditgrid.client.watch import updates
from creditgrid.core.states import RESULT, State
from creditgrid.core.wire import EventView, SweepView

if TYPE_CHECKING:
    from creditgrid.client.sweep import Sweep

BAR_WIDTH = 40
LINE_S = 5.0
"""Without a terminal, a line at most this often."""
MAX_ACTIVE = 4
"""Running calls that are shown."""


def show(
    sweep: Sweep, timeout: float | None = None, detachable: bool = True, console: Console | None = None
) -> SweepView:
    """Show the sweep until it is through, and return its last view.

    Ctrl-C ends the showing and not the sweep: it says how to come back, unless the service ends too (not
    ``detachable``).

    Raises:
        WaitTimeout: if the sweep is not through after ``timeout`` seconds.
        KeyboardInterrupt: after Ctrl-C.
    """
    console = console or Console(stderr=True, highlight=False, markup=False, emoji=False)
    display = _Bars(sweep.view, console) if console.is_terminal else _Lines(console)
    try:
        with display:
            for view, events in updates(sweep, timeout):
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
    for failure in sweep.failures():
        lines.append(f"  {failure.kind}: {failure.cause} ({failure.count:,} failed)")
        lines += [failure.traceback] if tracebacks else [f"  its traceback: creditgrid logs {view.id}"]
    return "\n".join(lines)


def come_back(sweep: Sweep) -> str:
    """The command that watches ``sweep``; it names the service if it is not the usual one."""
    url = sweep.connection.url
    return f"creditgrid watch {sweep.id}" + ("" if url == usual_url() else f" --url {url}")


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
    parts += [f"about {duration(view.eta_s)} left"] if view.eta_s is not None and not view.state.finished else []
    return " · ".join(parts)


class _Bars:
    """Live bars: cells, and the tasks below them."""

    def __init__(self, view: SweepView, console: Console) -> None:
        self._view, self._heard = view, time.monotonic()
        self._live = Live(console=console, refresh_per_second=4, get_renderable=self._render)

    def __enter__(self) -> None:
        self._live.start()

    def __exit__(self, *exc: object) -> None:
        self._live.stop()

    def update(self, view: SweepView, events: list[EventView]) -> None:
        for event in _told(events):
            self._live.console.print(_line(event), style="red", soft_wrap=True)
        self._view, self._heard = view, time.monotonic()

    def _render(self) -> RenderableType:
        view = self._view
        until = view.finished_at or datetime.now(UTC)
        times = duration((until - view.created_at).total_seconds())
        if view.eta_s is not None and not view.state.finished:
            times += f", about {duration(max(0.0, view.eta_s - (time.monotonic() - self._heard)))} left"
        grid = Table.grid(padding=(0, 2))
        for kind, counts in {**view.tasks, "cells": view.counts}.items():
            through = sum(n for state, n in counts.items() if state.finished)
            grid.add_row(kind, bar(counts), f"{through:,}/{sum(counts.values()):,}", counts_text(counts))
        lines: list[RenderableType] = [
            Text.assemble((view.name, "bold"), f"  {view.id}  ", state_text(view.state), f"  {times}"),
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

    def update(self, view: SweepView, events: list[EventView]) -> None:
        for event in _told(events):
            self._console.print(_line(event), soft_wrap=True)
        line = status_line(view)
        if line != self._last and (view.state.finished or time.monotonic() - self._at >= LINE_S):
            self._console.print(line, soft_wrap=True)
            self._last, self._at = line, time.monotonic()


def _told(events: list[EventView]) -> list[EventView]:
    """The events that a person wants to hear of at once."""
    return [event for event in events if event.type in ("call.failed", "call.retried", "sweep.cancelled")]


def _line(event: EventView) -> str:
    return f"{event.at.astimezone():%H:%M:%S} {event.data.get('message', event.type)}"
