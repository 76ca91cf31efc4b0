"""Specs in request bodies: JSON or YAML in UTF-8."""

from __future__ import annotations

import json

import pytest
from service_fakes import AppClient, Fakes, problem_in

SPEC = {"name": "one", "experiment": "linesearch", "axes": {"eta": [0.1]}}
JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("body", "content_type", "status", "said"),
    [
        (b"{", "application/json", 422, "line 1, column 2"),
        (b"", "application/json", 422, "JSON"),
        (b"[1]", "application/json", 422, "object"),
        (b'{"name": NaN}', "application/json", 422, "NaN"),
        (b'{"name": -Infinity}', "application/json", 422, "Infinity"),
        (b'{"name": 1, "name": 2}', "application/json", 422, "twice"),
        (b'{"name": "\\ud800", "experiment": "x"}', "application/json", 422, "surrogate"),
        (b"[" * 100_000, "application/json", 422, "deep"),
        (b"[" * 900 + b"]" * 900, "application/json", 422, ""),
        (b'{"name": ' + b"9" * 5000 + b"}", "application/json", 422, "digits"),
        ('{"name": "ü"}'.encode("latin-1"), "application/json", 422, "UTF-8"),
        ('{"name": "n"}'.encode("utf-16"), "application/json", 422, "UTF-8"),
        ("name: ü".encode("latin-1"), "application/yaml", 422, "UTF-8"),
        (b"name: [", "application/yaml", 422, ""),
        (b"a: &a [x]\nb: [*a, *a]", "text/yaml", 422, "alias"),
        (b"!!python/object/apply:os.system ['true']", "application/x-yaml", 422, "tag"),
        (b"[" * 100_000, "application/yaml", 422, "deep"),
        (b"{}", "text/plain", 415, "application/json"),
        (b"{}", "application/x-www-form-urlencoded", 415, "application/yaml"),
        (b"{}", "", 415, "application/json"),
        (b"\x00\x01\x02", "application/json", 422, "JSON"),
    ],
)
def test_bad_specs(client: AppClient, body: bytes, content_type: str, status: int, said: str) -> None:
    for path in ("/v1/plans", "/v1/sweeps"):
        response = client.post(path, content=body, headers={"Content-Type": content_type} if content_type else {})
        assert said in problem_in(response, status).detail
    assert client.get("/v1/sweeps").json()["items"] == []


@pytest.mark.parametrize("content_type", ["application/yaml", "text/yaml; charset=utf-8", "application/x-yaml"])
def test_submit_yaml(client: AppClient, fakes: Fakes, content_type: str) -> None:
    body = b"# a grid\nname: one\nexperiment: linesearch\naxes: {eta: [0.1]}\n"
    response = client.post("/v1/sweeps", content=body, headers={"Content-Type": content_type})
    assert response.status_code == 201
    assert response.json()["spec"] == SPEC


def test_json_with_a_byte_order_mark(client: AppClient) -> None:
    body = b"\xef\xbb\xbf" + json.dumps(SPEC).encode()
    response = client.post("/v1/sweeps", content=body, headers={"Content-Type": "Application/JSON; charset=UTF-8"})
    assert response.status_code == 201
