"""The client: artifacts and tasks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from creditgrid.client.errors import (
    BadSetting,
    DamagedAnswer,
    NotFound,
)
from creditgrid.core.wire import TaskDocument


def test_artifacts(service, client, tmp_path: Path) -> None:
    tensors = client.artifact("ab")
    assert list(tensors) == ["B.0"]
    np.testing.assert_array_equal(tensors["B.0"], np.arange(6, dtype=np.float32).reshape(2, 3))
    assert client.artifact_record("ab") == {"key": "ab", "kind": "train"}
    path = client.download_artifact("ab", tmp_path / "ab.safetensors")
    assert list(load_file(path)) == ["B.0"]


def test_a_damaged_artifact_is_not_taken(service, client, tmp_path: Path) -> None:
    service.damaged.add("ab")
    with pytest.raises(DamagedAnswer, match="/v1/artifacts/ab is damaged"):
        client.artifact("ab")
    with pytest.raises(DamagedAnswer, match="/v1/artifacts/ab is damaged"):
        client.download_artifact("ab", tmp_path / "ab.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_tasks_by_key(service, client) -> None:
    document = TaskDocument(key="k", kind="fit", version=1, params={"a": 1}, parents={"x": "p"}, group="g", source={})
    service.tasks["k"] = document
    assert client.task("k") == document
    with pytest.raises(NotFound):
        client.task("../sweeps")
    with pytest.raises(BadSetting):
        client.task("")
