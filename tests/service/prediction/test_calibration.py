"""The measurement of the machine: by a child process, once, and never in the way."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import pytest

from creditgrid.service.prediction.calibration import KEPT_S, Calibration, Calibrations, usual_file

PRICES = {"launches": 5e-6, "flops": 1e-11, "elements": 1e-10}
MEASURED = json.dumps({"cpu": PRICES})


def prints(text: str, status: int = 0) -> tuple[str, ...]:
    return (sys.executable, "-S", "-c", f"import sys; print({text!r}); sys.exit({status})")


def measured(file: Path | None, command: tuple[str, ...]) -> Calibrations:
    found = Calibrations(file, command)
    found.start()
    found.wait(60)
    return found


def test_what_was_measured_is_kept_for_the_next_process(tmp_path: Path) -> None:
    file = tmp_path / "new" / "calibration.json"
    first = measured(file, prints(MEASURED))
    assert first.of(gpu=False) == Calibration(5e-6, 1e-11, 1e-10)
    assert first.of(gpu=True) is None
    assert (first.measuring, first.problem) == (False, None)
    second = Calibrations(file, ("no such program",))
    second.start()
    assert second.of(gpu=False) == first.of(gpu=False)
    os.utime(file, (time.time() - KEPT_S - 60,) * 2)
    assert measured(file, ("no such program",)).of(gpu=False) is None


@pytest.mark.parametrize(
    "command",
    [
        ("no such program",),
        prints("", 1),
        prints("nonsense"),
        prints("[1]"),
        prints(json.dumps({"cpu": {"launches": 1.0}})),
        prints(json.dumps({"cpu": PRICES | {"flops": -1.0}})),
        prints(json.dumps({"cpu": PRICES | {"flops": float("nan")}})),
    ],
)
def test_a_measurement_that_fails_is_told_and_leaves_nothing(tmp_path: Path, command: tuple[str, ...]) -> None:
    found = measured(tmp_path / "file", command)
    assert found.of(gpu=False) is None
    assert found.problem is not None
    assert "could not be measured" in found.problem
    assert not list(tmp_path.iterdir())


def test_a_damaged_file_is_measured_again(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("{")
    assert measured(file, prints(MEASURED)).of(gpu=False) is not None
    assert json.loads(file.read_text()) == {"cpu": PRICES}


def test_it_starts_once_the_runner_is_ready_and_stops_at_any_time() -> None:
    waiting = Calibrations(None, prints(MEASURED))
    waiting.start(lambda: False)
    assert waiting.measuring
    waiting.stop()
    assert waiting.of(gpu=False) is None
    asleep = Calibrations(None, (sys.executable, "-S", "-c", "import time; time.sleep(60)"))
    asleep.start()
    started = time.monotonic()
    asleep.stop()
    assert time.monotonic() - started < 30
    assert asleep.problem is None


@pytest.mark.slow
def test_this_machine_is_measured() -> None:
    found = Calibrations(None)
    found.start()
    found.wait(180)
    price = found.of(gpu=False)
    assert price is not None, found.problem
    assert 1e-7 < price.launch_s < 1e-3
    assert 1e-14 < price.flop_s < 1e-8
    assert 1e-12 < price.element_s < 1e-7


def test_a_user_without_a_home_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(_: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", none)
    assert usual_file() is None
