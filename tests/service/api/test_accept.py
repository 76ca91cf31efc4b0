"""Which format of rows a request gets."""

from __future__ import annotations

import pytest
from starlette.exceptions import HTTPException

from creditgrid.core.wire import MEDIA_TYPES
from creditgrid.service.api.accept import negotiate


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        (None, "json"),
        ("", "json"),
        ("*/*", "json"),
        ("application/json", "json"),
        ("text/csv", "csv"),
        ("TEXT/CSV; charset=utf-8", "csv"),
        ("text/*", "csv"),
        ("application/*", "json"),
        (MEDIA_TYPES["arrow"], "arrow"),
        (MEDIA_TYPES["parquet"], "parquet"),
        ("text/html, application/json;q=0.5, text/csv;q=0.9", "csv"),
        ("text/csv;q=0.1, */*", "json"),
        (f"{MEDIA_TYPES['arrow']}, {MEDIA_TYPES['parquet']};q=0.9, */*;q=0.1", "arrow"),
        ("application/json;q=0, text/csv;q=0.2", "csv"),
        ("text/csv;q=x, application/json", "json"),
    ],
)
def test_negotiation(accept: str | None, chosen: str) -> None:
    assert negotiate(accept, None) == chosen
    assert negotiate(accept, "parquet") == "parquet"


@pytest.mark.parametrize(
    ("accept", "format_"),
    [("text/html", None), ("image/*", None), ("text/csv;q=0", None), (None, "xml"), ("*/*", "CSV")],
)
def test_nothing_acceptable(accept: str | None, format_: str | None) -> None:
    with pytest.raises(HTTPException) as caught:
        negotiate(accept, format_)
    assert caught.value.status_code == 406
    assert "csv" in caught.value.detail
