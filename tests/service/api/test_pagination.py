"""Pages and cursors of lists."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from service_fakes import AppClient

from creditgrid.service.api import pagination

SPEC = {"name": "one", "experiment": "linesearch", "axes": {"eta": [0.1]}}


def pages(client: AppClient, path: str, limit: int) -> list[Any]:
    items: list[Any] = []
    cursor: str | None = None
    while True:
        query: dict[str, Any] = {"limit": limit} | ({"cursor": cursor} if cursor else {})
        page = client.get(path, params=query).json()
        assert len(page["items"]) <= limit
        items += page["items"]
        cursor = page["next"]
        if cursor is None:
            return items
        assert not cursor.isdecimal()


def test_lists_are_paged(client: AppClient) -> None:
    ids = [client.post("/v1/sweeps", json=SPEC | {"name": f"n{i}"}).json()["id"] for i in range(5)]
    for limit in (1, 2, 5, 1000):
        assert [item["id"] for item in pages(client, "/v1/sweeps", limit)] == ids[::-1]
        assert [item["index"] for item in pages(client, f"/v1/sweeps/{ids[0]}/cells", limit)] == [0, 1, 2]
        keys = [item["key"] for item in pages(client, f"/v1/sweeps/{ids[0]}/tasks", limit)]
        assert keys == ["a" * 64, "b" * 64, "c" * 64]
    assert all(item["spec"] is None for item in client.get("/v1/sweeps").json()["items"])


@pytest.mark.parametrize(
    "cursor", ["5", "!!", "ü", "YWJj", "LTE", "OTk5OTk5OTk5OTk5OTk5OTk5OTk5OTk5", "Mi41", "=", "A"]
)
def test_invalid_cursors(client: AppClient, sweep: str, cursor: str) -> None:
    for path in ("/v1/sweeps", f"/v1/sweeps/{sweep}/cells"):
        response = client.get(path, params={"cursor": cursor})
        assert response.status_code == 400, path
        assert "cursor" in response.json()["detail"]


def test_long_cursors(client: AppClient) -> None:
    assert client.get("/v1/sweeps", params={"cursor": "x" * 1001}).status_code == 422


@given(st.integers(0, 10**18 - 1))
def test_number_cursors_round_trip(position: int) -> None:
    cursor = pagination.encode(position)
    assert cursor is not None
    assert re.fullmatch(r"[\w-]+", cursor, re.ASCII)
    assert pagination.decode_number(cursor) == position


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=200))
def test_text_cursors_round_trip(position: str) -> None:
    assert pagination.decode(pagination.encode(position) or "") == position
