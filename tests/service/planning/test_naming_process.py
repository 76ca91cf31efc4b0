"""Naming in a process gives what naming here gives, and ends with the interest in it."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sweeping import wait_until

from creditgrid.core import datasets
from creditgrid.core.datasets import DatasetRef, resolve
from creditgrid.core.errors import DatasetError, PluginError, SpecError
from creditgrid.core.spec.text import SpecText
from creditgrid.service.planning import naming_process
from creditgrid.service.planning.naming import NamingRequest, name
from creditgrid.service.planning.naming_process import NamingProcesses, PlanningError

pytestmark = pytest.mark.slow  # each test waits for the fork server once

DIGITS: dict[str, Any] = {
    "name": "n",
    "experiment": "linesearch",
    "fixed": {"dataset": "digits", "train_epochs": 1, "fit_epochs": 1},
    "axes": {"seed": [1, 2], "method": ["dfa", "vec"], "eta": {"linspace": [0.1, 1, 600]}},
}


def nobody_stops() -> None:
    pass


def named(request: NamingRequest, resolver: Any = resolve) -> list[Any]:
    return list(NamingProcesses(resolver).name(request, nobody_stops))


def text(**document: Any) -> SpecText:
    return SpecText.of({"name": "n", "experiment": "noop", **document})


@pytest.mark.parametrize(
    "request_",
    [
        NamingRequest(SpecText.of(DIGITS)),
        NamingRequest(SpecText.of(DIGITS), only=frozenset([3, 1500, 2399])),
        NamingRequest(SpecText.of(DIGITS), [{"axes": {"seed": [3]}, "include": []}], {"axes": {"seed": [4]}}),
        NamingRequest(SpecText(b"name: n\nexperiment: noop\naxes: {x: [1, 2]}", yaml=True)),
    ],
)
def test_a_process_names_the_same_cells(request_: NamingRequest) -> None:
    header, *chunks = named(request_)
    here, *wanted = name(request_, resolve)
    assert header == here
    assert [chunk.stages for chunk in chunks] == [tuples(chunk.stages) for chunk in wanted]
    assert [chunk.cells for chunk in chunks] == [tuples(chunk.cells) for chunk in wanted]


def tuples(items: Any) -> list[Any]:
    """The same with tuples for lists, as MessagePack gives them."""

    def plain(value: Any) -> Any:
        return tuple(map(plain, value)) if isinstance(value, list | tuple) else value

    return [plain(item) for item in items]


@pytest.fixture
def image_tables(tmp_path: Path) -> Path:
    """Tables of what looks like images."""
    image = pa.array([{"bytes": b"\x89PNG\r\n\x1a\n"}] * 40, pa.struct([("bytes", pa.binary())]))
    for split in ("train", "test"):
        pq.write_table(pa.table({"image": image, "label": pa.array([0, 1] * 20)}), tmp_path / f"{split}.parquet")
    return tmp_path


def test_a_dataset_is_read_once_for_all_plans(image_tables: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "_tables", {})
    spec = {**DIGITS, "fixed": {**DIGITS["fixed"], "dataset": str(image_tables), "batch_size": 2}}
    named(NamingRequest(SpecText.of(spec)))
    ((files, found),) = datasets.known_tables()
    assert len(found[0]) == 64
    datasets.remember_tables([(files, ("f" * 64, *found[1:]))])  # a process that knows it does not read it
    _, chunk, *_ = named(NamingRequest(SpecText.of(spec)))
    assert any("f" * 64 in stage.params for stage in chunk.stages if stage.kind == "data")
    os.utime(next(image_tables.iterdir()), (1, 1))
    _, chunk, *_ = named(NamingRequest(SpecText.of(spec)))
    assert any(found[0] in stage.params for stage in chunk.stages if stage.kind == "data")


@pytest.mark.parametrize(
    ("spec", "error", "match"),
    [
        (SpecText(b"{"), SpecError, "not JSON"),
        (text(experiment="nope"), SpecError, "there is no experiment 'nope'"),
        (text(axes={"x": []}), SpecError, "/axes/x"),
        (SpecText.of({**DIGITS, "fixed": {"dataset": "nope"}}), SpecError, "/fixed/dataset"),
    ],
)
def test_its_errors_are_those_of_naming_here(spec: SpecText, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        named(NamingRequest(spec))


def refuse(_: str) -> DatasetRef:
    raise PluginError("its package is broken")


def fail(_: str) -> DatasetRef:
    raise ZeroDivisionError("a secret detail")


def die(_: str) -> DatasetRef:
    os._exit(9)


def hang(_: str) -> DatasetRef:
    time.sleep(600)
    raise DatasetError("late")


@pytest.mark.parametrize(
    ("resolver", "error", "match"),
    [
        (refuse, PluginError, "its package is broken"),
        (fail, PlanningError, "unexpected error"),
        (die, PlanningError, "has died"),
    ],
)
def test_what_goes_wrong_in_it_is_an_error_here(resolver: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match) as caught:
        named(NamingRequest(SpecText.of(DIGITS)), resolver)
    assert "secret" not in str(caught.value)


def test_a_dataset_that_hangs_ends_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(naming_process, "FIRST_ANSWER_S", 0.5)
    with pytest.raises(SpecError, match="no answer within"):
        named(NamingRequest(SpecText.of(DIGITS)), hang)
    wait_until(lambda: not children())


def test_it_ends_when_nobody_wants_the_answer(tmp_path: Path) -> None:
    naming = NamingProcesses(resolve).name(NamingRequest(SpecText.of(DIGITS)), nobody_stops)
    next(naming)
    assert children()
    naming.close()
    wait_until(lambda: not children())

    class Gone(Exception):
        pass

    def gone() -> None:
        raise Gone

    with pytest.raises(Gone):
        list(NamingProcesses(hang).name(NamingRequest(SpecText.of(DIGITS)), gone))
    wait_until(lambda: not children())


def children() -> list[psutil.Process]:
    """The processes that name: grandchildren, since the fork server forks them."""
    mine = psutil.Process().children(recursive=True)
    servers = {process.pid for process in psutil.Process().children()}
    return [process for process in mine if process.pid not in servers and process.is_running()]
