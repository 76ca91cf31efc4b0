"""Importing a checkpoint: what is sent, what is printed, and what is refused before anything is sent."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from creditgrid.client import client as client_module
from creditgrid.client.cli import main as cli
from creditgrid.client.client import Client
from creditgrid.client.errors import BadSetting, InvalidRequest
from creditgrid.core.wire import CheckpointView, Problem

NAME = f"L4-d256-D3072-C10-{'0123456789abcdef' * 4}"
VIEW = CheckpointView(
    name=NAME, key="f" * 64, num_blocks=4, d_hidden=256, input_dim=3072, num_classes=10, bytes=5_300_000
)
DATA = os.urandom(300_000)


class Service:
    """Answers uploads, as scripted and then well; ``bodies`` are what came."""

    def __init__(self) -> None:
        self.requests: list[httpx.Request] = []
        self.bodies: list[bytes] = []
        self.script: list[httpx.Response | Exception] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        self.bodies.append(request.read())
        scripted = self.script.pop(0) if self.script else httpx.Response(201, text=VIEW.model_dump_json())
        if isinstance(scripted, Exception):
            raise scripted
        return scripted


@pytest.fixture
def uploads() -> Service:
    return Service()


@pytest.fixture
def importing(uploads: Service, pauses: list[float]) -> Iterator[Client]:
    with Client(transport=httpx.MockTransport(uploads)) as made:
        yield made


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "bp_ref_L4_d256_s42.pt"
    path.write_bytes(DATA)
    return path


@pytest.fixture
def commanded(uploads: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line talks to ``uploads``."""
    transport = httpx.MockTransport(uploads)
    monkeypatch.setattr(client_module, "Client", lambda *_: Client(transport=transport))


def test_the_file_is_sent_as_it_is(uploads: Service, importing: Client, file: Path) -> None:
    assert importing.import_checkpoint(str(file)) == VIEW
    (request,) = uploads.requests
    assert (request.method, request.url.path) == ("POST", "/v1/checkpoints")
    assert request.headers["content-type"] == "application/octet-stream"
    assert request.headers["content-length"] == str(len(DATA))
    assert uploads.bodies == [DATA]


def test_a_lost_try_is_repeated(uploads: Service, importing: Client, file: Path, pauses: list[float]) -> None:
    uploads.script = [httpx.ReadError("gone"), httpx.Response(502, text="no")]
    assert importing.import_checkpoint(file) == VIEW
    assert uploads.bodies == [DATA] * 3
    assert len(pauses) == 2


def test_over_a_socket(service, client: Client, file: Path) -> None:
    service.faults.append(Problem(title="Unprocessable", status=422, detail="the file holds code"))
    with pytest.raises(InvalidRequest, match="the file holds code"):
        client.import_checkpoint(file)
    ((_, body),) = service.posts("/v1/checkpoints")
    assert body == DATA


def test_what_is_no_file_is_not_sent(
    uploads: Service, importing: Client, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "MAX_CHECKPOINT_BYTES", len(DATA) - 1)
    os.mkfifo(file.with_name("pipe"))
    for path, said in (
        (file.with_name("nothing.pt"), "there is no such file"),
        (file.parent, "that is a folder"),
        (file.with_name("pipe"), "that is no file"),
        (file, "300,000 bytes are more than the 299,999"),
    ):
        with pytest.raises(BadSetting, match=said) as caught:
            importing.import_checkpoint(path)
        assert str(path) in str(caught.value)
    assert uploads.requests == []


@pytest.mark.usefixtures("commanded")
def test_the_command_prints_the_name_and_how_a_spec_says_it(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["import-checkpoint", str(file)]) == 0
    out, err = capsys.readouterr()
    assert out == f"{NAME}\n"
    *_, line = err.splitlines()
    assert yaml.safe_load(line) == {"fixed": {"checkpoint": NAME, "num_blocks": 4, "d_hidden": 256}}


@pytest.mark.usefixtures("commanded")
def test_the_command_prints_json(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["import-checkpoint", str(file), "-o", "json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == VIEW.model_dump()
    assert err == ""


@pytest.mark.usefixtures("commanded")
def test_the_command_refuses_in_one_line(uploads: Service, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["import-checkpoint", str(file.parent)]) == 2
    assert capsys.readouterr().err == f"error: {file.parent}: that is a folder; give one by torch.save\n"
    assert uploads.requests == []
    problem = Problem(title="Unprocessable", status=422, detail="out_ln.bias missing").model_dump_json()
    uploads.script = [httpx.Response(422, text=problem, headers={"Content-Type": "application/problem+json"})]
    assert cli.main(["import-checkpoint", str(file)]) == 2
    assert capsys.readouterr().err == "error: out_ln.bias missing\n"
