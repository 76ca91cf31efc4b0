"""Admission of brought code: what is stored and described, and how every hostile file is refused with file and line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from creditgrid.core.errors import CodeError, ForbiddenError, NotFoundError
from creditgrid.core.experiments.stages import code_task
from creditgrid.core.rows import columns
from creditgrid.core.units.code import sha256_of
from creditgrid.service.codes import Codes, read_code
from creditgrid.service.planning import admission
from creditgrid.service.planning.admission import Admission
from creditgrid.workers.artifacts import ArtifactStore

pytestmark = pytest.mark.slow  # each test waits for the fork server once

METHOD = b'''
"""A method."""
from pydantic import Field

from creditgrid.core.units.method import Method


class Scaled(Method):
    """The error, scaled."""

    name = "scaled"
    uses_feedback = True
    scale: float = Field(1.0, gt=0, alias="scaled_by", description="Scale, dimensionless.")

    def credit(self, forward, fitted):
        return forward.states * self.scale
'''


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "artifacts")


@pytest.fixture
def admitted(store: ArtifactStore) -> Admission:
    return Admission(Codes(store, allowed=True), store)


def test_code_is_described_and_stored_without_being_executed_here(admitted: Admission, store: ArtifactStore) -> None:
    files = {"my_method.py": METHOD + b"print('x' * 10)\n"}
    view, created = admitted.admit(files)
    assert created
    assert view.sha256 == sha256_of(files)
    assert view.key == code_task(view.sha256).key
    assert (view.files, view.bytes) == ({"my_method.py": len(files["my_method.py"])}, len(files["my_method.py"]))
    (unit,) = view.units
    assert (unit.group, unit.name, unit.title, unit.file, unit.line) == (
        "methods",
        "scaled",
        "The error, scaled",
        "my_method.py",
        8,
    )
    assert unit.parameters["scaled_by"]["exclusiveMinimum"] == 0
    assert not [name for name in sys.modules if name.startswith("creditgrid_code_") and view.sha256[:16] in name]
    again, created = admitted.admit(files)
    assert (again, created) == (view, False)
    codes = Codes(store, allowed=True)
    assert codes.files(view.sha256) == files
    assert read_code(store.root, view.sha256, allowed=True) == files
    found = codes.registry(view.sha256)
    assert codes.registry(view.sha256) is found
    assert columns(found.experiments["linesearch"])["scaled_by"] == "float64"
    assert "scaled" in str(found.experiments["linesearch"].params.model_json_schema())
    shown = codes.of_sweep(view.sha256)
    assert (shown.file, shown.units, shown.key) == ("my_method.py", ["scaled"], view.key)


def test_a_service_that_takes_no_code_says_how_to_allow_it(store: ArtifactStore) -> None:
    with pytest.raises(ForbiddenError, match="creditgrid serve --allow-code"):
        Admission(Codes(store, allowed=False), store).admit({"m.py": METHOD})
    with pytest.raises(ForbiddenError, match="creditgrid serve --allow-code"):
        Codes(store, allowed=False).read("0" * 64)


def test_code_that_is_not_there_is_named(store: ArtifactStore) -> None:
    codes = Codes(store, allowed=True)
    for absent in ("0" * 64, "../../x"):
        with pytest.raises(NotFoundError, match="there is no code"):
            codes.view(absent)
        with pytest.raises(NotFoundError, match="there is no code"):
            codes.files(absent)
    with pytest.raises(CodeError, match="send the files again"):
        codes.read("0" * 64)


FORK = "import os\nwhile True:\n    os.fork()\n"
LOOP = b"x = 1\nwhile True:\n    try:\n        x += 1\n    except BaseException:\n        pass\n"
HOSTILE = {
    "raises": (b"\nraise RuntimeError('no')\n", "m.py:2: RuntimeError: no"),
    "syntax": (b"def f(:\n", "m.py:1: SyntaxError: invalid syntax"),
    "package": (b"import no_such_package\n", "m.py:1: the package 'no_such_package' is not installed here: install"),
    "exits": (b"import sys\nsys.exit(1)\n", "m.py:2: the file ends its process (SystemExit: 1)"),
    "ends": (b"import os\n\nos._exit(3)\n", "m.py:3: PermissionError: code may not end its process (os._exit(3))"),
    "crashes": (
        b"import ctypes\nctypes.string_at(0)\n",
        "m.py:2: the process that has to load the code was ended by SIGSEGV",
    ),
    "closes": (b"import os\nos.closerange(0, 1000)\n", "m.py: the code ended the process that has to load it (exit"),
    "memory": (b"x = 1\ny = b'x' * 2 ** 31\n", "m.py:2: MemoryError"),
    "arrays": (b"import torch\nx = torch.ones(2 ** 30)\n", "m.py:2: RuntimeError: [enforce fail at"),
    "forks": (FORK.encode(), "m.py:3: PermissionError: code may not start processes (os.fork)"),
    "shell": (b"import os\nos.system('true')\n", "m.py:2: PermissionError: code may not start processes (os.system)"),
    "program": (b"import subprocess\n\nsubprocess.run(['true'])\n", "m.py:3: PermissionError: code may not start proc"),
    "spawns": (
        b"import multiprocessing.util as m\nm.spawnv_passfds(b'/bin/true', [b'true'], ())\n",
        "m.py:2: PermissionError: code may not start processes (fork_exec)",
    ),
    "c": (b"import ctypes\nctypes.CDLL(None).fork()\n", "m.py:2: PermissionError: code may not start or signal"),
    "kills": (b"import os\nos.kill(os.getppid(), 9)\n", "m.py:2: PermissionError: code may not signal processes (os."),
    "loops": (LOOP, "m.py:"),
    "sleeps": (
        b"import time\n\ntime.sleep(1000)\n",
        "m.py:3: the code takes longer than 2 s to load: make",
    ),
    "taken": (METHOD.replace(b'"scaled"', b'"vec"'), "m.py:8: the method 'vec' exists already: choose another name"),
    "parameter": (METHOD.replace(b"scaled_by", b"eta"), "m.py:8: the experiment 'exploitability' cannot be used with"),
    "type": (METHOD.replace(b"scaled_by", b"cb_samples"), "m.py:8: the parameter 'cb_samples' is"),
    "column": (METHOD.replace(b"scale: float = Field(1.0, gt=0,", b"scale: list = Field([],"), "m.py:8: "),
    "contract": (METHOD.replace(b"states *", b"states.double() *"), "m.py:15: scaled: credit() gave torch.float64"),
    "undescribed": (
        METHOD.replace(b', description="Scale, dimensionless."', b""),
        "m.py:8: the parameter 'scaled_by' of",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_cannot_be_used_is_refused_with_file_and_line(
    name: str, admitted: Admission, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, said = HOSTILE[name]
    if name in ("loops", "sleeps"):
        monkeypatch.setattr(admission, "LOAD_S", 2.0)
    with pytest.raises(CodeError) as caught:
        admitted.admit({"m.py": text})
    assert str(caught.value).startswith(said), caught.value
    assert not list(store.keys())


def test_secrets_and_the_working_folder_are_not_seen(
    admitted: Admission, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    probe = b"import os\nopen('here', 'w').close()\nraise ValueError(os.listdir(), sorted(os.environ))\n"
    with pytest.raises(CodeError, match=r"m.py:3: ValueError: \(\['here'\]") as caught:
        admitted.admit({"m.py": probe})
    assert "TOKEN" not in str(caught.value)
    assert not list(tmp_path.glob("here"))
