"""The commands that change what becomes of a sweep: one line each, and their exit codes."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from creditgrid.client.cli import main as cli
from creditgrid.client.cli.extension import extension
from creditgrid.client.errors import BadSetting
from creditgrid.core.errors import SpecError
from creditgrid.core.states import State
from creditgrid.core.wire import Extension, Problem, ProblemError

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(service, capsys: pytest.CaptureFixture[str], pauses: list[float], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the command line and returns its exit code, standard output and standard error."""
    monkeypatch.setenv("CREDITGRID_URL", service.url)

    def call(*arguments: str) -> tuple[int, str, str]:
        code = cli.main(arguments)
        out, err = capsys.readouterr()
        return code, out, err

    return call


def test_each_says_what_is_now_so(service, run: Run) -> None:
    service.add()
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
    assert run("pause", "s1") == (5, "", "error: sweep s1 is through\n")
    assert run("retry", "s1") == (0, "sweep s1 is pending: 1 of 4 cells to run\n", "")


@pytest.mark.parametrize("verb", ["pause", "cancel"])
def test_as_json_they_print_the_view(service, run: Run, verb: str) -> None:
    service.add()
    assert json.loads(run(verb, "s1", "-o", "json")[1])["conditions"] == []
    code, out, _ = run(verb, "s1", "-o", "json")
    assert code == 0
    view = json.loads(out)
    assert view["id"] == "s1"
    assert [condition["type"] for condition in view["conditions"]] == ["unchanged"]


def test_extend(service, run: Run, tmp_path: Path) -> None:
    service.add(State.SUCCEEDED)
    more = tmp_path / "more.yaml"
    more.write_text("axes: {seed: [7]}\ninclude: [{method: dfa, eta: 1e-3}]\n")
    options = ("--axis", "eta=0.1, 1e-3", "--axis", "method=vec", "--include", '{"method": "vec", "eta": 2}')
    assert run("extend", "s1", *options, "--file", str(more)) == (
        0,
        "sweep s1 is running: 6 cells added, 10 in total, 6 of them open\n",
        "",
    )
    ((_, body),) = service.posts("/v1/sweeps/s1/extend")
    assert json.loads(body) == {
        "axes": {"seed": [7], "eta": [0.1, 0.001], "method": ["vec"]},
        "include": [{"method": "dfa", "eta": 1e-3}, {"method": "vec", "eta": 2}],
    }
    code, out, _ = run("extend", "s1", "--axis", "eta=0")
    assert (code, out) == (0, "sweep s1 is running; nothing was changed: the sweep has all these cells\n")


def test_an_axis_that_the_sweep_has_not(service, run: Run) -> None:
    service.add()

    def refuse(more: Extension) -> Problem:
        (axis,) = more.axes
        fault = ProblemError(detail=f"{axis} is no axis of this sweep", pointer=f"/axes/{axis}")
        return Problem(title="Unprocessable", status=422, detail="the extension has one fault", errors=[fault])

    service.refuse_extension = refuse
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
def test_extensions_that_are_not_sent(service, run: Run, options: list[str], said: str) -> None:
    service.add()
    code, out, err = run("extend", "s1", *options)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert said in err
    assert "Traceback" not in err
    assert service.posts("/v1/sweeps/s1/extend") == []


@pytest.mark.parametrize(
    ("written", "values"),
    [
        ("1,2", [1, 2]),
        ("1e-5", [1e-5]),
        ("vec,dfa", ["vec", "dfa"]),
        ("[1, 2]", [1, 2]),
        ("null,true,1.0", [None, True, 1.0]),
        ("'a,b',c", ["a,b", "c"]),
        ("{logspace: [1e-5, 1e-2, 4]}", {"logspace": [1e-5, 1e-2, 4]}),
        ("a=b", ["a=b"]),
    ],
)
def test_values_are_read_as_yaml(written: str, values: Any) -> None:
    (axes, include) = extension([f"eta={written}"], [], None)
    assert (axes, include) == ({"eta": values}, [])
    found = axes["eta"]
    if isinstance(found, list):
        assert [type(value) for value in found] == [type(value) for value in values]


def test_values_of_one_axis_add_up() -> None:
    assert extension(["eta=1,2", "seed=1", "eta=3"], [], None)[0] == {"eta": [1, 2, 3], "seed": [1]}


def test_datasets_are_found_from_where_they_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "more.yaml").write_text("axes: {dataset: [./one]}")
    monkeypatch.chdir(tmp_path)
    axes, include = extension(["dataset=./two,cifar10"], ["{dataset: ../three}"], "sub/more.yaml")
    assert axes["dataset"] == [str(tmp_path / "sub" / "one"), str(tmp_path / "two"), "cifar10"]
    assert include == [{"dataset": str(tmp_path.parent / "three")}]


def test_a_file_holds_axes_and_cells_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "more.yaml"
    path.write_text("name: grid\naxes: [1]\ninclude: {}\n")
    with pytest.raises(SpecError) as caught:
        extension([], [], str(path))
    assert [fault.pointer for fault in caught.value.faults] == ["/name", "/axes", "/include"]
    assert "an extension has axes and include, not 'name'" in str(caught.value)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"axes: {eta: [1]}")))
    assert extension(["eta=2"], [], "-") == ({"eta": [1, 2]}, [])
    path.write_text("axes: {eta: {range: [3]}}")
    with pytest.raises(BadSetting, match="cannot be joined"):
        extension(["eta=2"], [], str(path))
