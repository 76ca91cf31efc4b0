"""Uploads of checkpoints: which are accepted, which are refused; no code in an upload runs."""

from __future__ import annotations

import asyncio
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from attack.uploads import uploads
from pydantic import SecretStr
from service_fakes import AppClient, Fakes, problem_in, serving
from starlette.requests import ClientDisconnect

from creditgrid.core.errors import BusyError
from creditgrid.core.experiments.stages import checkpoint_task
from creditgrid.core.science.network import ResidualMLP
from creditgrid.core.wire import MAX_SPEC_BYTES, CheckpointView
from creditgrid.service.api import app as app_module
from creditgrid.service.api import checkpoint_import
from creditgrid.service.api.app import create_app
from creditgrid.service.api.checkpoint_import import MOST_WAITING, SLOTS, CheckpointImporter
from creditgrid.service.settings import Settings

URL = "/v1/checkpoints"
HEADERS = {"Content-Type": "application/octet-stream"}


class Malicious:
    """An unsafe unpickling of it makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.marker}",)


def saved(value: object) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def left_over(settings: Settings) -> list[Path]:
    return list(settings.data_dir.iterdir())


def refused(client: AppClient, status: int, **options: Any) -> str:
    response = client.post(URL, **{"headers": HEADERS, **options})
    return problem_in(response, status).detail


@pytest.fixture
def reading(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A program that runs instead of the importing process."""
    program = tmp_path / "reading.py"
    starter = tmp_path / "python"
    starter.write_text(f"#!/bin/sh\nexec {sys.executable} {program}\n")
    starter.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(starter))
    return program


def test_import(client: AppClient, fakes: Fakes, settings: Settings) -> None:
    network = ResidualMLP(3072, 256, 10, 4)
    data = saved(network.state_dict())
    assert len(data) > MAX_SPEC_BYTES  # the limit of specs does not apply
    response = client.post(URL, content=data, headers=HEADERS)
    assert response.status_code == 201, response.text
    view = CheckpointView.model_validate_json(response.text)
    assert (view.num_blocks, view.d_hidden, view.input_dim, view.num_classes) == (4, 256, 3072, 10)
    assert view.key == checkpoint_task(view.name).key
    assert response.headers["location"] == f"/v1/artifacts/{view.key}"
    arrays = fakes.store.load(view.key)
    assert sorted(arrays) == sorted(network.state_dict())
    for name, tensor in network.state_dict().items():
        np.testing.assert_array_equal(arrays[name], tensor.numpy())
    artifact = client.get(response.headers["location"])
    assert (artifact.status_code, len(artifact.content)) == (200, view.bytes)
    again = client.post(URL, content=data, headers=HEADERS)
    assert (again.status_code, again.json()) == (200, response.json())
    assert again.headers["location"] == response.headers["location"]
    assert fakes.audit.rows == [(None, "import", view.name, "done")]  # the second changed nothing
    assert left_over(settings) == []


def test_code_is_not_run(client: AppClient, fakes: Fakes, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    said = refused(client, 422, content=saved({"embed.weight": Malicious(marker)}))
    assert "code or pickled objects" in said
    assert "torch.save(model.state_dict(), FILE)" in said
    assert not marker.exists()
    assert list(fakes.store.keys()) == []


def test_a_whole_training_dict(client: AppClient) -> None:
    said = refused(client, 422, content=saved({"model": {}, "epoch": 3}))
    assert "a dict of 'model' (a dict of 0), 'epoch' (int), not a state dict" in said


@pytest.mark.parametrize("kind", ["", "application/json", "application/x-www-form-urlencoded"])
def test_other_media_types(client: AppClient, kind: str) -> None:
    assert "application/octet-stream" in refused(client, 415, content=b"x", headers={"Content-Type": kind})


def test_a_file_that_is_too_large(
    client: AppClient, fakes: Fakes, settings: Settings, monkeypatch: pytest.MonkeyPatch, reading: Path
) -> None:
    monkeypatch.setattr(app_module, "MAX_CHECKPOINT_BYTES", 100_000)

    async def pieces() -> Any:
        for _ in range(11):
            yield bytes(10_000)

    with serving(create_app(fakes.services(), settings)) as other:
        assert "100,000 bytes" in refused(other, 413, content=bytes(100_001))
        assert "100,000 bytes" in refused(other, 413, content=pieces())
        response = other.post("/v1/plans", content=b" " * (MAX_SPEC_BYTES + 1))
        assert response.status_code == 413  # the limit of specs is unchanged
    assert left_over(settings) == []


def test_a_file_that_takes_too_long(
    client: AppClient, settings: Settings, reading: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_import, "TIMEOUT_S", 1.5)
    number = reading.with_suffix(".pid")
    reading.write_text(
        f"import os, pathlib, time\npathlib.Path({str(number)!r}).write_text(str(os.getpid()))\ntime.sleep(60)"
    )
    assert "took longer than 1.5 s" in refused(client, 422, content=b"x")
    assert not psutil.pid_exists(int(number.read_text()))
    assert left_over(settings) == []


@pytest.mark.parametrize(
    ("program", "status", "said"),
    [
        ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", 422, "too much memory"),
        ("import os\nos.abort()", 422, "too much memory"),
        ("raise SystemExit(7)", 500, "ended with status 7"),
        ('print(\'{"error": "no space left"}\')\nraise SystemExit(1)', 500, "no space left"),
    ],
)
def test_a_process_that_ends_badly(client: AppClient, reading: Path, program: str, status: int, said: str) -> None:
    reading.write_text(program)
    assert said in refused(client, status, content=b"x")
    assert client.get("/healthz").status_code == 200


def test_the_process_gets_the_file_and_no_secrets(
    client: AppClient, reading: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CREDITGRID_TOKEN", "secret")
    reading.write_text(
        "import json, os, sys\n"
        "names = [name for name in os.environ if name.startswith('CREDITGRID_')]\n"
        "print(json.dumps({'error': f'{names} {sys.stdin.read()}'}))\n"
        "raise SystemExit(2)"
    )

    async def pieces() -> Any:
        for piece in (b"one ", b"two ", b"three"):
            yield piece

    assert refused(client, 422, content=pieces()) == "[] one two three"


def test_a_directory_that_cannot_be_written(client: AppClient, settings: Settings, reading: Path) -> None:
    settings.data_dir.write_text("in the way")
    assert "cannot be stored" in refused(client, 500, content=b"x")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["an unused bomb in a checkpoint", "a path above", "a tensor that repeats one value"])
def test_hostile_uploads_are_problems(client: AppClient, fakes: Fakes, tmp_path: Path, name: str) -> None:
    upload = uploads()[name]
    path = tmp_path / "upload"
    path.write_bytes(upload) if isinstance(upload, bytes) else upload(path)
    refused(client, 422, content=path.read_bytes())
    assert list(fakes.store.keys()) == []


def test_a_third_upload_waits_and_one_too_many_is_refused(tmp_path: Path, reading: Path) -> None:
    reading.write_text("import time\ntime.sleep(60)")
    importer = CheckpointImporter(tmp_path / "uploads", tmp_path / "artifacts")
    waiting = asyncio.Event()
    others = set(psutil.Process().children())  # such as a fork server of other tests

    def reading_now() -> int:
        return len(set(psutil.Process().children()) - others)

    async def chunks() -> Any:
        yield b"x"

    async def gone() -> None:
        await waiting.wait()

    async def run() -> list[object]:
        tasks = [asyncio.create_task(importer.import_upload(chunks(), gone)) for _ in range(SLOTS + MOST_WAITING)]
        while reading_now() < SLOTS:
            await asyncio.sleep(0.05)
        with pytest.raises(BusyError, match="too many checkpoints"):
            await importer.import_upload(chunks(), gone)
        assert reading_now() == SLOTS
        waiting.set()  # every client goes
        return list(await asyncio.gather(*tasks, return_exceptions=True))

    found = asyncio.run(run())
    assert all(isinstance(error, ClientDisconnect) for error in found), found
    assert reading_now() == 0


@pytest.fixture
def guarded(fakes: Fakes, settings: Settings) -> Iterator[AppClient]:
    token = SecretStr("correct-horse-battery")
    with serving(create_app(fakes.services(), settings.model_copy(update={"token": token}))) as found:
        yield found


def test_the_token_is_required(guarded: AppClient, settings: Settings) -> None:
    refused(guarded, 401, content=b"x")
    assert not settings.data_dir.exists()


def test_openapi(client: AppClient) -> None:
    document = client.get("/openapi.json").json()["paths"][URL]["post"]
    assert set(document["requestBody"]["content"]) == {"application/octet-stream"}
    assert {"200", "201"} <= set(document["responses"])
