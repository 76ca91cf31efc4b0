"""Progress on a terminal, in a pipe, and when it is interrupted."""

from __future__ import annotations

import io
import threading
import time
from collections import Counter, defaultdict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from creditgrid.client import watch
from creditgrid.client.client import Client
from creditgrid.client.display import progress
from creditgrid.client.sweep import Sweep
from creditgrid.core.states import State
from creditgrid.core.wire import SweepView


@given(st.dictionaries(st.sampled_from(list(State)), st.integers(0, 10**6)), st.integers(len(State), 200))
def test_a_bar_has_its_width_and_shows_every_state(counts: dict[State, int], width: int) -> None:
    bar, console = progress.bar(counts, width), Console()
    assert len(bar.plain) == width
    there = {state: n for state, n in counts.items() if n}
    if there:
        lengths = Counter(bar.get_style_at_offset(console, i).color.name for i in range(width))  # type: ignore[union-attr]
        colours: dict[str, list[State]] = defaultdict(list)  # two states share one
        for state in there:
            colours[progress.STYLES[state]].append(state)
        assert lengths.keys() == colours.keys()
        for colour, states in colours.items():
            share = width * sum(there[state] for state in states) / sum(there.values())
            assert lengths[colour] >= len(states)
            assert abs(lengths[colour] - share) <= len(there)


def show(sweep: Sweep, console: Console, detachable: bool = True) -> SweepView:
    return progress.show(sweep.view, sweep.updates(), sweep.connection.url, detachable=detachable, console=console)


def finish_soon(service, sweep: str, state: State) -> threading.Thread:
    def finish() -> None:
        time.sleep(0.15)
        service.emit(sweep, "call.failed", "fit failed: [bold]no[/bold]\x1b[2J")
        service.change(sweep, state)
        service.emit(sweep, "sweep.finished")

    thread = threading.Thread(target=finish)
    thread.start()
    return thread


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_shows_the_end(service, client, terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "LONGEST_S", 0.3)
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=120, markup=False, highlight=False, color_system=None)
    sweep = client.sweep(service.add(remaining_s=30.0))
    thread = finish_soon(service, sweep.id, State.FAILED)
    view = show(sweep, console)
    thread.join()
    assert view.state is State.FAILED
    text = out.getvalue()
    assert "fit failed: [bold]no[/bold]" in text
    if terminal:
        assert "a [red]grid[/red]" in text
        assert "━" * progress.BAR_WIDTH in text
        assert "succeeded 3 · running 1" in text
        assert "about 30 s left" in text
        assert "succeeded 3 · failed 1" in text[text.rindex("cells") :]
    else:
        assert "running: 3/4 cells · fit 0/2 · about 30 s left" in text.splitlines()[0]
        assert text.splitlines()[-1] == "failed: 4/4 cells · fit 0/2 · 1 failed"
        assert "\x1b" not in text


def test_lines_are_few(service, client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "SHORTEST_S", 0.01)
    monkeypatch.setattr(watch, "LONGEST_S", 0.01)
    out = io.StringIO()
    sweep = client.sweep(service.add())
    asked = 0

    def change_each_time(id_: str) -> None:
        nonlocal asked
        asked += 1
        service.sweeps[id_] = service.sweeps[id_].model_copy(update={"remaining_s": float(asked)})
        if asked == 50:
            service.change(id_, State.SUCCEEDED)

    service.on_view = change_each_time
    show(sweep, Console(file=out, force_terminal=False))
    assert len(out.getvalue().splitlines()) == 2


def held(kind: str, message: str, paused: bool = False) -> dict[str, Any]:
    return {"remaining_s": 30.0, "paused": paused, "conditions": [{"type": kind, "message": message}]}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (held("degraded", "the cluster is away"), "degraded: the cluster is away"),
        (held("paused", "no more calls start", paused=True), "paused: no more calls start"),
        ({"remaining_s": 30.0, "paused": True}, "paused"),
        (held("unchanged", "nothing was changed"), "about 30 s left"),
    ],
)
@pytest.mark.parametrize("terminal", [True, False])
def test_what_holds_a_sweep_up_stands_in_place_of_the_time_left(
    service, client, fields: dict[str, Any], said: str, terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "LONGEST_S", 0.3)
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=160, markup=False, highlight=False, color_system=None)
    sweep = client.sweep(service.add(**fields))
    thread = finish_soon(service, sweep.id, State.SUCCEEDED)
    show(sweep, console)
    thread.join()
    text = out.getvalue()
    assert said in text
    assert ("left" in text) is ("left" in said)
    if terminal:
        assert ("running (paused)" in text) is fields.get("paused", False)
        assert "(paused)" not in text[text.rindex("a [red]grid") :]


def test_a_service_that_is_away_is_reported_once(service, client, pauses, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "SHORTEST_S", 0.01)
    out = io.StringIO()
    sweep = client.sweep(service.add())
    service.faults.extend(["drop before"] * 80)
    service.on_view = lambda id_: service.change(id_, State.SUCCEEDED)
    show(sweep, Console(file=out, force_terminal=False, width=20))
    lines = out.getvalue().splitlines()
    assert len(lines) == 3
    assert lines[0].startswith(f"lost the connection to {service.url} (")
    assert lines[0].endswith("; waiting for it")
    assert lines[1] == f"{service.url} answers again"
    assert lines[2].startswith("succeeded: 4/4 cells")


def test_bars_that_hear_nothing_say_so(service, client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "LONGEST_S", 0.3)
    monkeypatch.setattr(progress, "SILENT_S", -1.0)
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=160, color_system=None)
    sweep = client.sweep(service.add(remaining_s=30.0))
    thread = finish_soon(service, sweep.id, State.SUCCEEDED)
    show(sweep, console)
    thread.join()
    text = out.getvalue()
    assert "no answer for 0." in text
    assert "left" not in text
    assert "no answer" not in text[text.rindex("a [red]grid") :]


@pytest.mark.parametrize("detachable", [True, False])
def test_ctrl_c_detaches(service, client, detachable: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    sweep = client.sweep(service.add())

    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(watch.EventReader, "wait", interrupt)
    with pytest.raises(KeyboardInterrupt):
        show(sweep, Console(file=out, force_terminal=False, width=20), detachable)
    said = f"sweep s1 continues; watch it with: creditgrid watch s1 --url {service.url}"
    assert (said in out.getvalue()) is detachable
    assert service.sweeps["s1"].state is State.RUNNING


def test_the_way_back_names_the_service_only_if_needed(service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CREDITGRID_URL", service.url + "/")
    service.add()
    with Client(service.url) as client:
        assert progress.watch_command(client.sweep("s1").view, client.url) == "creditgrid watch s1"


def test_wait_shows_progress_on_standard_error(service, client, capsys: pytest.CaptureFixture[str]) -> None:
    client.sweep(service.add(State.SUCCEEDED)).wait(progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "succeeded: 4/4 cells" in err
