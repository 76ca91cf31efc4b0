"""Import of files by torch.save, and of all other files; no code in a file is ever run."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attack.uploads import uploads

from creditgrid.core.errors import CheckpointError
from creditgrid.core.experiments.stages import checkpoint_task
from creditgrid.core.science.from_artifacts import checkpoint_network
from creditgrid.core.science.imported import CheckpointName, check
from creditgrid.core.science.network import ResidualMLP
from creditgrid.workers import importing
from creditgrid.workers.artifacts import ArtifactStore
from creditgrid.workers.importing import ADVICE, REFUSED, import_checkpoint

State = dict[str, torch.Tensor]


class Malicious:
    """It makes a file when it is unpickled carelessly."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.marker}",)


@pytest.fixture
def network() -> ResidualMLP:
    """The state dict that a plain script makes."""
    return ResidualMLP(6, 4, 3, 2)


@pytest.fixture
def state(network: ResidualMLP) -> State:
    return dict(network.state_dict())


def saved(value: object, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


# -- what is imported --


def test_a_state_dict_becomes_an_artifact(network: ResidualMLP, store: ArtifactStore, tmp_path: Path) -> None:
    torch.save(network.state_dict(), tmp_path / "bp_ref.pt")
    with (tmp_path / "bp_ref.pt").open("rb") as file:
        view, created = import_checkpoint(file, store)
    assert created
    name = CheckpointName.parse(view.name)
    assert view.key == checkpoint_task(view.name).key
    assert (view.num_blocks, view.d_hidden, view.input_dim, view.num_classes) == (2, 4, 6, 3)
    assert name == check({key: tensor.numpy() for key, tensor in network.state_dict().items()})
    arrays = store.load(view.key)
    restored = checkpoint_network(arrays, torch.device("cpu"), residual_add=True)
    x = torch.randn(5, 6)
    assert torch.equal(restored(x), network(x))
    record = store.record(view.key)
    assert view.bytes == record["bytes"]
    assert record["payload"] == {"kind": "checkpoint", "version": 1, "params": {"name": view.name}, "parents": {}}
    assert {"torch", "version", "commit", "dirty", "attempt", "started_at", "seconds", "device", "host", "info"} == set(
        record["provenance"]
    )


def test_a_second_import_changes_nothing(state: State, store: ArtifactStore) -> None:
    first, created = import_checkpoint(io.BytesIO(saved(state)), store)
    again, created_again = import_checkpoint(io.BytesIO(saved(OrderedDict(reversed(state.items())))), store)
    assert (created, created_again) == (True, False)
    assert again == first
    assert list(store.keys()) == [first.key]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_floats_are_converted(state: State, store: ArtifactStore, dtype: torch.dtype) -> None:
    other = {name: tensor.to(dtype) for name, tensor in state.items()}
    view, _ = import_checkpoint(io.BytesIO(saved(other)), store)
    for name, array in store.load(view.key).items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, np.array(other[name].tolist(), np.float32))
    assert store.record(view.key)["provenance"]["info"] == {"imported_from": [str(dtype).removeprefix("torch.")]}


def test_every_form_of_file_is_read(state: State, store: ArtifactStore) -> None:
    expected, _ = import_checkpoint(io.BytesIO(saved(state)), store)
    transposed = {name: tensor.t().contiguous().t() for name, tensor in state.items()}
    parameters = {name: torch.nn.Parameter(tensor) for name, tensor in state.items()}
    for data in (saved(state, _use_new_zipfile_serialization=False), saved(transposed), saved(parameters)):
        assert import_checkpoint(io.BytesIO(data), store) == (expected, False)


# -- what is refused --


def refusal(data: bytes, store: ArtifactStore) -> str:
    with pytest.raises(CheckpointError) as caught:
        import_checkpoint(io.BytesIO(data), store)
    assert list(store.keys()) == []
    assert len(str(caught.value)) < 600
    return str(caught.value)


@pytest.mark.parametrize(
    "pack",
    [
        saved,
        lambda value: saved(value, _use_new_zipfile_serialization=False),
        *[lambda value, protocol=protocol: pickle.dumps(value, protocol) for protocol in range(2, 6)],
    ],
)
@pytest.mark.parametrize("wrap", [lambda evil, state: evil, lambda evil, state: {**state, "embed.bias": evil}])
def test_code_is_not_run(
    pack: Callable[[object], bytes],
    wrap: Callable[[object, State], object],
    state: State,
    store: ArtifactStore,
    tmp_path: Path,
) -> None:
    marker = tmp_path / "ran"
    data = pack(wrap(Malicious(marker), {} if pack is not saved else state))
    said = refusal(data, store)
    assert not marker.exists()
    assert "code or pickled objects" in said
    assert "are not loaded" in said
    assert said.endswith(ADVICE)
    pickle.loads(pickle.dumps(Malicious(marker)))
    assert marker.exists()  # so the code would have run


@pytest.mark.parametrize("protocol", [0, 1])
def test_code_in_old_pickles_is_not_run(protocol: int, store: ArtifactStore, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    for value in (Malicious(marker), {"embed.bias": Malicious(marker)}):
        assert refusal(pickle.dumps(value, protocol), store).endswith(ADVICE)
    assert not marker.exists()


def test_a_whole_model_is_code(network: ResidualMLP, store: ArtifactStore) -> None:
    said = refusal(saved(network), store)
    assert "code or pickled objects (creditgrid.core.science.network.ResidualMLP)" in said
    assert "model.state_dict()" in said


@pytest.mark.parametrize(
    ("wrap", "said"),
    [
        (
            lambda state: {"model": state, "epoch": 20},
            ["a dict of 'model' (a dict of 18), 'epoch' (int), not a state dict"],
        ),
        (
            lambda state: {"epoch": 20, "state_dict": state, "lr": 0.1, "note": "x", "loss": [1.0]},
            ["'state_dict' (a dict of 18)", "and 2 more"],
        ),
        (lambda state: {**state, "step": 3}, ["'embed.weight' (Tensor)", "and 16 more"]),
        (lambda state: list(state.values()), ["a single object of type list"]),
        (lambda state: state["embed.weight"], ["a single object of type Tensor"]),
        (lambda state: None, ["a single object of type NoneType"]),
        (lambda state: dict(enumerate(state.values())), ["names are not text, such as 0"]),
    ],
)
def test_a_file_that_is_no_state_dict_is_described(
    wrap: Callable[[State], object], said: list[str], state: State, store: ArtifactStore
) -> None:
    found = refusal(saved(wrap(state)), store)
    for part in [*said, "model.state_dict()"]:
        assert part in found


@pytest.mark.parametrize(
    ("tensor", "said"),
    [
        (torch.zeros(4, dtype=torch.int64), "embed.bias is of type torch.int64"),
        (torch.zeros(4, dtype=torch.complex64), "embed.bias is of type torch.complex64"),
        (torch.zeros(4, dtype=torch.bool), "embed.bias is of type torch.bool"),
        (torch.zeros(4).to_sparse(), "embed.bias is sparse"),
        (torch.zeros(4, device="meta"), "embed.bias has no values"),
        (torch.full((4,), 1e300, dtype=torch.float64), "embed.bias holds values that are not finite"),
        (torch.zeros(5), "embed.bias has the shape (5,), and (4,) was expected"),
    ],
)
def test_tensors_of_the_wrong_kind(tensor: torch.Tensor, said: str, state: State, store: ArtifactStore) -> None:
    assert said in refusal(saved({**state, "embed.bias": tensor}), store)


def test_wrong_names_are_reported(state: State, store: ArtifactStore) -> None:
    said = refusal(saved({f"module.{name}": tensor for name, tensor in state.items()}), store)
    assert "module.blocks.0.ln.bias" in said


def archive(**files: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        for name, text in files.items():
            made.writestr(name, text)
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "empty"),
        (b"hello world", "not written by torch.save"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "not written by torch.save"),
        (bytes(1000), "not written by torch.save"),
        (archive(x="a zip archive"), "not written by torch.save"),
        (archive(**{"a/data.pkl": "no pickle", "a/version": "3"}), "are not loaded"),
        (pickle.dumps({"a": [1, 2]}, 2), "not written by torch.save"),
    ],
)
def test_other_files_are_refused(data: bytes, said: str, store: ArtifactStore) -> None:
    assert said in refusal(data, store)


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}])
def test_files_that_are_cut_off_are_refused(options: dict[str, bool], state: State, store: ArtifactStore) -> None:
    data = saved(state, **options)
    for end in range(0, len(data) - 1, len(data) // 60):
        refusal(data[:end], store)


def test_a_flipped_bit_is_detected(state: State, store: ArtifactStore) -> None:
    data = bytearray(saved(state))
    values = state["blocks.1.w1.weight"].numpy().tobytes()
    data[data.index(values) + 3] ^= 1
    assert re.search(r"the checksum of \S+ in it is wrong", refusal(bytes(data), store))


# -- the command --


def run(*arguments: str, stdin: Any = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "creditgrid.workers.importing", *arguments]
    return subprocess.run(command, stdin=stdin, capture_output=True, text=True, check=False, timeout=120)


def test_the_command_imports_from_standard_input(state: State, store: ArtifactStore, tmp_path: Path) -> None:
    file = tmp_path / "x.pt"
    file.write_bytes(saved(state))
    with file.open("rb") as stdin:
        done = run("-", str(store.root), stdin=stdin)
    assert (done.returncode, done.stderr) == (0, "")
    (line,) = done.stdout.splitlines()
    view, created = import_checkpoint(io.BytesIO(saved(state)), store)
    assert json.loads(line) == view.model_dump() | {"created": True}
    assert not created


def test_the_command_limits_its_memory(state: State, store: ArtifactStore, tmp_path: Path) -> None:
    # 64 TiB by its shape, four bytes in the file.
    huge = torch.zeros(1).expand(2**22, 2**22)
    (tmp_path / "x.pt").write_bytes(saved({**state, "embed.weight": huge, "embed.bias": torch.zeros(1).expand(2**22)}))
    done = run(str(tmp_path / "x.pt"), str(store.root))
    assert done.returncode == REFUSED, done.stderr
    assert list(json.loads(done.stdout)) == ["error"]
    assert not store.root.exists()


Call = Callable[[Path], tuple[int, dict[str, Any]]]


@pytest.fixture
def call(store: ArtifactStore, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    """The command in this process: its exit status and what it prints."""
    monkeypatch.setattr(resource, "setrlimit", lambda *_: None)  # this process runs on

    def called(file: Path) -> tuple[int, dict[str, Any]]:
        status = importing.main([str(file), str(store.root)])
        return status, json.loads(capsys.readouterr().out)

    return called


def test_the_command_reports_errors(state: State, store: ArtifactStore, tmp_path: Path, call: Call) -> None:
    file = tmp_path / "x.pt"
    status, answer = call(file)
    assert (status, "No such file" in answer["error"]) == (1, True)
    file.write_bytes(b"hello")
    status, answer = call(file)
    assert (status, "torch.save" in answer["error"]) == (REFUSED, True)
    file.write_bytes(saved(state))
    store.root.write_text("in the way")
    status, answer = call(file)
    assert (status, "cannot be written" in answer["error"]) == (1, True)


def test_running_out_of_memory_is_reported(
    state: State, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.pt").write_bytes(saved(state))

    def load(*_: object, **__: object) -> Any:
        return torch.empty(2**60, dtype=torch.uint8)

    monkeypatch.setattr(torch, "load", load)
    status, answer = call(tmp_path / "x.pt")
    assert (status, "takes more than 5 GiB of memory" in answer["error"]) == (REFUSED, True)


def test_a_lower_limit_of_memory_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[tuple[int, tuple[int, int]]] = []
    monkeypatch.setattr(resource, "setrlimit", lambda *given: limits.append(given))
    for most, expected in (
        (resource.RLIM_INFINITY, (importing.MEMORY, resource.RLIM_INFINITY)),
        (2**30, (2**30, 2**30)),
        (2**40, (importing.MEMORY, 2**40)),
    ):
        monkeypatch.setattr(resource, "getrlimit", lambda _, most=most: (most, most))
        importing.limit_memory()
        assert limits.pop() == (resource.RLIMIT_DATA, expected)


# -- hostile files -------------------------------------------------------------------------------------------------

ENDLESS = "pickle: pairs of pairs as a key"


def test_hostile_files_are_refused_soon(store: ArtifactStore, tmp_path: Path) -> None:
    slow = {}
    found = uploads()
    assert len(found) >= 100
    for name, upload in found.items():
        if name == ENDLESS:
            continue
        path = tmp_path / "upload"
        path.write_bytes(upload) if isinstance(upload, bytes) else upload(path)
        started = time.process_time()
        with path.open("rb") as file, pytest.raises(CheckpointError):
            import_checkpoint(file, store)
        if (taken := time.process_time() - started) > 5:
            slow[name] = taken
    assert not slow
    assert list(store.keys()) == []
    assert not Path("/tmp/creditgrid-attacked").exists()


@pytest.mark.slow
def test_an_unpickler_that_is_kept_busy_is_ended(store: ArtifactStore) -> None:
    command = [sys.executable, "-m", "creditgrid.workers.importing", "-", str(store.root)]
    data = uploads()[ENDLESS]
    assert isinstance(data, bytes)
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.seek(0)
        done = subprocess.run(command, check=False, stdin=file, capture_output=True, timeout=120)
    assert done.returncode == -signal.SIGXCPU
