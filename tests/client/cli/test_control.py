"""The commands that control a sweep: one line each, and their exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from creditgrid.core.states import State
from creditgrid.core.wire import Extension, Problem, ProblemError

Run = Callable[..., tuple[int, str, str]]


def test_each_says_what_is_now_so(connected, run: Run) -> None:
    connected.add()
    assert run("pause", "s1") == (0, "sweep s1 is paused: running calls finish; 1 of 4 cells are open\n", "")
    assert run("pause", "s1") == (0, "sweep s1 is paused; nothing was changed: it is paused already\n", "")
    assert run("resume", "s1") == (0, "sweep s1 is running: 1 of 4 cells are open\n", "")
    assert run("resume", "s1") == (0, "sweep s1 is running; nothing was changed: it is running already\n", "")
    assert run("retry", "s1") == (5, "", "error: sweep s1 is running\n")
    assert run("cancel", "s1") == (
        0,
        "sweep s1 is cancelled: 3 of 4 cells have results, which are kept\n",
        "",
    )
    assert run("cancel", "s1") == (0, "sweep s1 is cancelled; nothing was changed: it is cancelled already\n", "")
    assert run("pause", "s1") == (5, "", "error: sweep s1 is finished\n")
    assert run("retry", "s1") == (0, "sweep s1 is pending: 1 of 4 cells to run\n", "")


@pytest.mark.parametrize("verb", ["pause", "cancel"])
def test_as_json_they_print_the_view(connected, run: Run, verb: str) -> None:
    connected.add()
    assert json.loads(run(verb, "s1", "-o", "json")[1])["conditions"] == []
    code, out, _ = run(verb, "s1", "-o", "json")
    assert code == 0
    view = json.loads(out)
    assert view["id"] == "s1"
    assert [condition["type"] for condition in view["conditions"]] == ["unchanged"]


def test_extend(connected, run: Run, tmp_path: Path) -> None:
    connected.add(State.SUCCEEDED)
    more = tmp_path / "more.yaml"
    more.write_text("axes: {seed: [7]}\ninclude: [{method: dfa, eta: 1e-3}]\n")
    options = ("--axis", "eta=0.1, 1e-3", "--axis", "method=vec", "--include", '{"method": "vec", "eta": 2}')
    assert run("extend", "s1", *options, "--file", str(more)) == (
        0,
        "sweep s1 is running: 6 cells added, 10 in total, 6 of them open\n",
        "",
    )
    ((_, body),) = connected.posts("/v1/sweeps/s1/extend")
    assert json.loads(body) == {
        "axes": {"seed": [7], "eta": [0.1, 0.001], "method": ["vec"]},
        "include": [{"method": "dfa", "eta": 1e-3}, {"method": "vec", "eta": 2}],
    }
    code, out, _ = run("extend", "s1", "--axis", "eta=0")
    assert (code, out) == (0, "sweep s1 is running; nothing was changed: the sweep has all these cells\n")


def test_an_axis_that_the_sweep_has_not(connected, run: Run) -> None:
    connected.add()

    def refuse(more: Extension) -> Problem:
        (axis,) = more.axes
        fault = ProblemError(detail=f"{axis} is no axis of this sweep", pointer=f"/axes/{axis}")
        return Problem(title="Unprocessable", status=422, detail="the extension has one fault", errors=[fault])

    connected.refuse_extension = refuse
    code, out, err = run("extend", "s1", "--axis", "etaa=0.1")
    assert (code, out) == (2, "")
    assert err == "error: the extension has one fault\n  /axes/etaa: etaa is no axis of this sweep\n"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "there is nothing to add"),
        (["--axis", "eta"], "--axis eta: write it as --axis eta=0.1,0.3"),
        (["--axis", "eta="], "--axis eta=: write it as --axis eta=0.1,0.3"),
        (["--axis", "=1"], "--axis =1: write it as"),
        (["--axis", "eta=[1"], "--axis eta=[1: not YAML"),
        (["--axis", "eta=1,&a 2"], "anchors"),
        (["--axis", "eta={range: [3]}", "--axis", "eta=4"], "a generator cannot be joined with other values"),
        (["--include", "[1]"], "write a cell as"),
        (["--include", "{a: 1"], "--include {a: 1: not YAML"),
        (["--axis", "eta=.nan"], "/axes/eta/0: nan is not a finite number"),
        (["--file", "none.yaml"], "there is no such file"),
    ],
)
def test_extensions_that_are_not_sent(connected, run: Run, options: list[str], said: str) -> None:
    connected.add()
    code, out, err = run("extend", "s1", *options)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert said in err
    assert "Traceback" not in err
    assert connected.posts("/v1/sweeps/s1/extend") == []
