"""The form of the log."""

from __future__ import annotations

import json
import logging

import pytest

from creditgrid.service.logging import RateLimit, configure_logging


@pytest.mark.usefixtures("logging_restored")
def test_other_libraries_log_in_the_same_form(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("json")
    logging.getLogger("a.library").warning("node %s is gone", "n1")
    (line,) = capsys.readouterr().err.splitlines()
    entry = json.loads(line)
    assert (entry["event"], entry["level"]) == ("node n1 is gone", "warning")


def record(text: object, at: float, level: int = logging.INFO) -> logging.LogRecord:
    found = logging.LogRecord("asyncio", level, "", 1, text, None, None)
    found.created = at
    return found


def test_what_repeats_too_fast_is_left_out() -> None:
    limit = RateLimit()
    texts = [f"accept: out of system resource\nsocket {n}" for n in range(9999)]
    assert sum(limit.filter(record(text, 0, logging.ERROR)) for text in texts) == 50
    assert limit.filter(record({"event": "another"}, 0, logging.ERROR))
    later = record(texts[0], 100, logging.ERROR)
    assert limit.filter(later)
    assert later.getMessage().endswith("(9,949 such lines were left out)")
    assert limit.filter(after := record({"event": "request", "path": "/"}, 100))
    assert after.msg == {"event": "request", "path": "/"}


def test_lines_of_requests_are_kept_up_to_a_hundred_a_second() -> None:
    limit = RateLimit()
    records = [record({"event": "request"}, second + n / 1000) for second in range(60) for n in range(1000)]
    written = [item for item in records if limit.filter(item)]
    assert 6000 <= len(written) <= 7100
    assert sum(item.msg.get("left_out", 0) for item in written if isinstance(item.msg, dict)) > 50_000
