"""Artifacts over HTTP."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load
from service_fakes import AppClient, Fakes, problem_in

KEY = "0123456789abcdef" * 4


@pytest.fixture
def arrays(fakes: Fakes) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {
        "embed.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
        "y": np.array([1, 2], np.int64),
    }
    fakes.store.save(KEY, {"kind": "train"}, arrays, {"host": "h"})
    return arrays


def test_artifact(client: AppClient, arrays: dict[str, np.ndarray]) -> None:
    response = client.get(f"/v1/artifacts/{KEY}")
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/vnd.safetensors"
    assert response.headers["etag"] == f'"{KEY}"'
    digest = base64.b64encode(hashlib.sha256(response.content).digest()).decode()
    assert response.headers["repr-digest"] == f"sha-256=:{digest}:"
    tensors = load(response.content)
    assert sorted(tensors) == sorted(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(tensors[name], array)


@pytest.mark.usefixtures("arrays")
def test_artifact_unchanged(client: AppClient) -> None:
    for tags in (f'"{KEY}"', f'"other", W/"{KEY}"'):
        response = client.get(f"/v1/artifacts/{KEY}", headers={"If-None-Match": tags})
        assert (response.status_code, response.content) == (304, b"")
    assert client.get(f"/v1/artifacts/{KEY}", headers={"If-None-Match": '"other"'}).status_code == 200


@pytest.mark.usefixtures("arrays")
def test_artifact_in_parts(client: AppClient) -> None:
    whole = client.get(f"/v1/artifacts/{KEY}").content
    part = client.get(f"/v1/artifacts/{KEY}", headers={"Range": "bytes=4-9"})
    assert (part.status_code, part.content) == (206, whole[4:10])


@pytest.mark.usefixtures("arrays")
def test_record(client: AppClient) -> None:
    record = client.get(f"/v1/artifacts/{KEY}/record").json()
    assert (record["key"], record["payload"], record["provenance"]) == (KEY, {"kind": "train"}, {"host": "h"})
    assert record["tensors"]["embed.weight"] == {"shape": [2, 3], "dtype": "float32"}


@pytest.mark.parametrize(
    "key", ["f" * 64, "short", "..", "%2e%2e%2f%2e%2e%2fetc%2fpasswd", "F" * 64, KEY + "0", "a" * 63 + "/"]
)
def test_artifacts_that_are_not_there(client: AppClient, key: str) -> None:
    for suffix in ("", "/record"):
        response = client.get(f"/v1/artifacts/{key}{suffix}")
        assert response.status_code == 404
        assert response.headers["content-type"] == "application/problem+json"


def test_corrupt_artifacts_are_named(client: AppClient, fakes: Fakes) -> None:
    import numpy as np

    key = "ab" * 32
    fakes.store.save(key, {}, {"x": np.ones(3, np.float32)}, {})
    (fakes.store.path(key) / "tensors.safetensors").unlink()
    assert "gone" in problem_in(client.get(f"/v1/artifacts/{key}"), 500).detail


@pytest.mark.usefixtures("arrays")
@pytest.mark.parametrize(
    ("given", "status"),
    [
        ("bytes=999999-", 416),
        ("bytes=5-2", 400),
        ("bytes=a-b", 400),
        ("items=0-1", 400),
        ("bytes", 400),
        (f"bytes={'9' * 5000}-", 400),
    ],
)
def test_a_range_that_cannot_be_sent(client: AppClient, given: str, status: int) -> None:
    response = client.get(f"/v1/artifacts/{KEY}", headers={"Range": given})
    assert "Range" in problem_in(response, status).detail
    assert ("content-range" in response.headers) == (status == 416)


@pytest.mark.parametrize(
    "body",
    [{"dry_run": 0}, {"dry_run": 1}, {"dry_run": "false"}, {"dry_run": None}, {"max_bytes": "1"}, {"max_bytes": True}],
)
def test_gc_takes_no_value_for_another(client: AppClient, fakes: Fakes, body: dict[str, Any]) -> None:
    problem_in(client.post("/v1/gc", json=body), 422)
    assert fakes.retention.requests == []
