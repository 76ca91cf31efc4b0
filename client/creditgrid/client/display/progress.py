"""A sweep's progress on standard error: live bars on a terminal, otherwise a line now and then."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from datetime import UTC, datetime

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from creditgrid.client.connection import url_option
from creditgrid.client.display.quantities import duration
from creditgrid.client.display.tables import STYLES, counts_text, finished, state_text
from creditgrid.client.display.untrusted_text import harmless
from creditgrid.client.watch import Update
from creditgrid.core.states import RESULT, State
from creditgrid.core.wire import FailureView, SweepView

BAR_WIDTH = 40
LINE_S = 5.0
"""Without a terminal, a line at most this often."""
PAUSED, HOLDING = "paused", ("paused", "degraded")
"""Conditions that stop a sweep, or slow it down."""
SILENT_S = 10.0
"""After so long without a view the bars report it."""
REPORTED = ("call.failed", "call.retried", "sweep.cancelled", "sweep.paused", "sweep.resumed", "sweep.extended")
"""Types of events that are printed at once."""
MAX_ACTIVE = 4
"""At most this many running calls are shown."""


def show(
    view: SweepView, updates: Iterable[Update], url: str, *, detachable: bool = True, console: Console | None = None
) -> SweepView:
    """Show a sweep until its updates end, and return its last view.

    Ctrl-C does not stop the sweep: the command to watch it again is shown, unless the service ends too (not
    ``detachable``).

    Args:
        view: the sweep's latest known view.
        updates: of the sweep; what they raise ends the display.
        url: of the service.
    """
    console = console or Console(stderr=True, highlight=False, markup=False, emoji=False)
    display = _Bars(view, console) if console.is_terminal else _Lines(console)
    away = False
    try:
        with display.live:
            for update in updates:
                view = update.view
                if update.error is not None and not away:
                    console.print(f"{update.error}; waiting for it", style="yellow", soft_wrap=True)
                elif update.error is None and away:
                    console.print(f"{url} answers again", style="yellow", soft_wrap=True)
                away = update.error is not None
                for event in update.events:
                    if event.type in REPORTED:
                        message = harmless(str(event.data.get("message", event.type)))
                        console.print(f"{event.at.astimezone():%H:%M:%S} {message}", style="red", soft_wrap=True)
                if not away:
                    display.update(view)
    except KeyboardInterrupt:
        if detachable:
            console.print(f"sweep {view.id} continues; watch it with: {watch_command(view, url)}", soft_wrap=True)
        raise
    return view


def failed_text(view: SweepView, failures: Sequence[FailureView], url: str | None) -> str:
    """Why a finished sweep is not a success: its failures, each with the command that prints its traceback.

    Without a ``url`` the service has ended with its sweep, so the tracebacks themselves are shown.
    """
    without = sum(n for state, n in view.counts.items() if state not in RESULT)
    lines = [f"sweep {view.id} {view.state}: {without:,} of {view.cells:,} cells have no result"]
    lines += [f"  {found.type}: {found.message}" for found in view.conditions]
    for failure in failures:
        lines.append(f"  {failure.kind}: {failure.cause} ({failure.count:,} failed)")
        if url is None:
            lines.append(failure.traceback.rstrip())
            lines.append(f"  run it here, with a service (creditgrid serve): {failure.command}")
        else:
            lines.append(f"  its traceback: creditgrid logs {view.id}{url_option(url)}")
            lines.append(f"  run it here: {failure.command}{url_option(url)}")
    return harmless("\n".join(lines))


def watch_command(view: SweepView, url: str) -> str:
    """The command that watches a sweep; it names the service if it is not the usual one."""
    return f"creditgrid watch {view.id}{url_option(url)}"


def bar(counts: Mapping[State, int], width: int = BAR_WIDTH) -> Text:
    """A bar of ``width`` characters (8 or more), divided by state; each state with cells has at least one character."""
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
    parts = [f"{view.state}: {finished(view.counts):,}/{view.cells:,} cells"]
    for kind, counts in view.tasks.items():
        if (done := finished(counts)) < sum(counts.values()):
            parts.append(f"{kind} {done:,}/{sum(counts.values()):,}")
    failed = view.counts.get(State.FAILED, 0)
    parts += [f"{failed:,} failed"] if failed else []
    return " · ".join([*parts, *_outlook(view, 0.0)])


def _outlook(view: SweepView, since_s: float) -> list[str]:
    """What holds the sweep up; if nothing does, the time left, of which ``since_s`` passed after the view.

    A sweep that is held up has no time left to show: the number would be wrong.
    """
    if view.state.finished:
        return []
    reasons = [f"{found.type}: {found.message}" for found in view.conditions if found.type in HOLDING]
    if view.paused and not any(found.type == PAUSED for found in view.conditions):
        reasons.append(PAUSED)
    if reasons or view.remaining_s is None:
        return reasons
    return [f"about {duration(max(0.0, view.remaining_s - since_s))} left"]


class _Bars:
    """Live bars: one for each kind of stage, and one for the cells."""

    def __init__(self, view: SweepView, console: Console) -> None:
        self._view, self._received = view, time.monotonic()
        self.live = Live(console=console, refresh_per_second=4, get_renderable=self._render)

    def update(self, view: SweepView) -> None:
        self._view, self._received = view, time.monotonic()

    def _render(self) -> RenderableType:
        view = self._view
        until = view.finished_at or datetime.now(UTC)
        silence = time.monotonic() - self._received
        silent = silence > SILENT_S and not view.state.finished
        outlook = [f"no answer for {duration(silence)}"] if silent else _outlook(view, silence)
        grid = Table.grid(padding=(0, 2))
        for kind, counts in {**view.tasks, "cells": view.counts}.items():
            grid.add_row(kind, bar(counts), f"{finished(counts):,}/{sum(counts.values()):,}", counts_text(counts))
        times = ", ".join([duration((until - view.created_at).total_seconds()), *outlook])
        lines: list[RenderableType] = [
            Text.assemble((view.name, "bold"), f"  {view.id}  ", state_text(view.state, view.paused), f"  {times}"),
            grid,
        ]
        for activity in [] if view.state.finished else view.active[:MAX_ACTIVE]:
            done = f" {activity.done:,}/{activity.total:,}" if activity.total else ""
            lines.append(Text(harmless(f"  {activity.kind}{done} {activity.note}".rstrip()), style="dim"))
        return Group(*lines)


class _Lines:
    """A line after a change, for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self._console, self.live = console, nullcontext()
        self._last, self._printed_at = "", -LINE_S

    def update(self, view: SweepView) -> None:
        line = status_line(view)
        if line != self._last and (view.state.finished or time.monotonic() - self._printed_at >= LINE_S):
            self._console.print(line, soft_wrap=True)
            self._last, self._printed_at = line, time.monotonic()
