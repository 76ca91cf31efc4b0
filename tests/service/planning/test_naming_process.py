"""Naming in a process gives what naming here gives, and ends with the interest in it."""

from __future__ import annotations

import json
import os
import time
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sweeping import wait_until

from creditgrid.core import datasets
from creditgrid.core.datasets import DatasetRef, resolve
from creditgrid.core.errors import DatasetError, ForbiddenError, PluginError, SpecError
from creditgrid.core.experiments.stages import code_task
from creditgrid.core.spec.text import SpecText
from creditgrid.core.units.code import sha256_of, to_arrays
from creditgrid.service.codes import read_code
from creditgrid.service.planning import naming_process
from creditgrid.service.planning.naming import NamingRequest, name
from creditgrid.service.planning.naming_process import NamingProcesses, PlanningError
from creditgrid.workers.artifacts import ArtifactStore

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


HALF = """from creditgrid.core.units.rule import Rule


class Half(Rule):
    \"\"\"Half the credit.\"\"\"

    name = "half"

    def output_gradient(self, branch, credit):
        return credit / 2 / credit.shape[-2]
"""
RULES: dict[str, Any] = {
    "name": "n",
    "experiment": "exploitability",
    "fixed": {"dataset": "digits", "train_epochs": 1, "method": "dfa"},
    "axes": {"rule": ["inner_product", "half"]},
}


def with_code(text: str, tmp_path: Path, **changes: Any) -> list[Any]:
    """What is named of a sweep of rules that brings this text."""
    files = {"half.py": text.encode()}
    store, task = ArtifactStore(tmp_path), code_task(sha256_of(files))
    store.save(task.key, task.payload(), to_arrays(files), {})
    document = {**RULES, "code": task.params["sha256"], **changes}
    names = NamingProcesses(resolve, partial(read_code, store.root, allowed=True)).name
    return list(names(NamingRequest(SpecText.of(document)), nobody_stops))


def test_cells_of_brought_units_have_its_content_in_their_keys_and_the_others_have_not(tmp_path: Path) -> None:
    def keys(text: str) -> list[str]:
        header, chunk = with_code(text, tmp_path)
        assert header.code == sha256_of({"half.py": text.encode()})
        assert header.code == json.loads(header.document)["code"]
        return [cell.task.key for cell in chunk.cells]

    plain = dict(RULES, axes={"rule": ["inner_product"]})
    (inner,) = [cell.task.key for cell in named(NamingRequest(SpecText.of(plain)))[1].cells]
    first, again, changed = keys(HALF), keys(HALF), keys(HALF.replace("/ 2 /", "/ 3 /"))
    assert first == again
    assert first[0] == changed[0] == inner
    assert first[1] != changed[1]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (HALF + "\nraise ValueError('no')\n", "half.py:12: ValueError: no"),
        (HALF.replace('"half"', '"cosine"'), "half.py:4: the rule 'cosine' exists already: choose another name"),
        (HALF + "\nimport os\nos.kill(os.getppid(), 9)\n", "half.py:13: PermissionError: code may not signal"),
        (
            HALF + "\nimport ctypes\nctypes.string_at(0)\n",
            "half.py:13: the process that has to load the code",
        ),
    ],
)
def test_code_that_cannot_be_loaded_is_a_fault_of_the_spec(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        with_code(text, tmp_path)
    (fault,) = caught.value.faults
    assert fault.pointer == "/code"
    assert fault.detail.startswith(said)


def test_code_that_is_not_there_or_not_allowed_is_named(tmp_path: Path) -> None:
    request = NamingRequest(SpecText.of({**RULES, "code": "0" * 64}))
    with pytest.raises(SpecError, match=r"/code: there is no code '0000.*send the files again"):
        list(NamingProcesses(resolve, partial(read_code, tmp_path, allowed=True)).name(request, nobody_stops))
    with pytest.raises(ForbiddenError, match="creditgrid serve --allow-code"):
        list(NamingProcesses(resolve, partial(read_code, tmp_path, allowed=False)).name(request, nobody_stops))
    with pytest.raises(SpecError, match="/code: "):
        named(NamingRequest(SpecText.of({**RULES, "code": "mine.py"})))


def children() -> list[psutil.Process]:
    """The processes that name: grandchildren, since the fork server forks them."""
    mine = psutil.Process().children(recursive=True)
    servers = {process.pid for process in psutil.Process().children()}
    return [process for process in mine if process.pid not in servers and process.is_running()]
