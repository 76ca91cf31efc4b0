"""The form of the log."""

from __future__ import annotations

import json
import logging

import pytest

from creditgrid.service.logging import configure_logging


@pytest.mark.usefixtures("logging_restored")
def test_other_libraries_log_in_the_same_form(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("json")
    logging.getLogger("ray").warning("node %s is gone", "n1")
    (line,) = capsys.readouterr().err.splitlines()
    entry = json.loads(line)
    assert (entry["event"], entry["level"]) == ("node n1 is gone", "warning")
