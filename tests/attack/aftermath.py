"""What must hold after an attack: nothing grew, nothing was left or written elsewhere, the log has no traceback."""

from __future__ import annotations

import json
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tests.service_process import ServiceProcess, Usage

from .pulse import Beat
from .tally import Tally

MORE_DESCRIPTORS = 10
MORE_THREADS = 45
"""The pool of threads that serves requests may be full: it has 40."""
QUIET_S = 30.0
"""By then the service has let go of what it held for its attackers."""
STOP_S = 20.0
"""The service's grace is 10 s; the local runner has nothing that takes longer."""
HEALTHZ_S = 1.0
"""The longest that ``/healthz`` may take, whatever else is asked."""
LEFT_S = 5.0
"""By then its last processes have noticed that it has ended."""
LOG_MB = 20.0
NOTED_PLACES = ("home", "temporary", "work")


def check_quiet(service: ServiceProcess, before: Usage, tally: Tally) -> Usage:
    """Wait until the service holds no more than before; returns what it holds then."""
    deadline = time.monotonic() + QUIET_S
    while (now := service.usage()) and time.monotonic() < deadline:
        if _not_grown(before, now):
            return now
        time.sleep(0.5)
    if now.descriptors > before.descriptors + MORE_DESCRIPTORS:
        tally.fell_short("afterwards", "descriptors grew", f"{before.descriptors} → {now.descriptors}")
    if now.threads > before.threads + MORE_THREADS:
        tally.fell_short("afterwards", "threads grew", f"{before.threads} → {now.threads}")
    if now.children > before.children:
        tally.fell_short("afterwards", "processes left while it runs", f"{before.children} → {now.children}")
    return now


def _not_grown(before: Usage, now: Usage) -> bool:
    return (
        now.descriptors <= before.descriptors + MORE_DESCRIPTORS
        and now.threads <= before.threads + MORE_THREADS
        and now.children <= before.children
    )


def check_pulse(beats: Sequence[Beat], tally: Tally) -> None:
    """Every ``/healthz`` was answered in time."""
    for beat in beats:
        tally.attempt("/healthz meanwhile", "GET /healthz", beat.status or "no answer", beat.seconds)
        if beat.seconds > HEALTHZ_S * tally.patience or beat.status != 200:
            at = time.strftime("%H:%M:%S", time.localtime(beat.at))
            what = f"asked at {at}: {beat.status or 'no answer'} after {beat.seconds:.1f} s"
            tally.fell_short("/healthz meanwhile", f"no answer within {HEALTHZ_S:g} s", what)


def check_stop(service: ServiceProcess, tally: Tally) -> None:
    """Stop the service: it exits with 0, in time, and leaves no process, no file elsewhere, and a sound log."""
    if not service.alive:
        tally.fell_short("afterwards", "the service has ended by itself", service.log_end()[-800:])
    started = time.monotonic()
    service.terminate()
    try:
        status = service.wait()
        seconds = time.monotonic() - started
        if status != 0 or seconds > STOP_S * tally.patience:
            tally.fell_short("afterwards", "the stop", f"exit status {status} after {seconds:.1f} s")
    except subprocess.TimeoutExpired:
        tally.fell_short("afterwards", "the stop", "SIGTERM does not end the service")
    deadline = time.monotonic() + LEFT_S
    while list(service.processes()) and time.monotonic() < deadline:
        time.sleep(0.1)
    if left := service.end_all():
        tally.fell_short("afterwards", "processes left after the stop", ", ".join(left)[:300])
    for place in NOTED_PLACES:
        for path in sorted((service.folder / place).rglob("*")):
            measurement = path.match("home/.cache/creditgrid/calibration-*.json")  # of the machine: the README names it
            if path.is_file() and not measurement:
                tally.fell_short("afterwards", "a file outside the data directory", str(path))
    check_log(service.log, tally)


def check_log(log: Path, tally: Tally) -> None:
    """No traceback, no error, and not too long."""
    size = log.stat().st_size / 2**20
    if size > LOG_MB:
        tally.fell_short("afterwards", "a long log", f"{size:.0f} MB")
    found: Counter[str] = Counter()
    with log.open(errors="replace") as lines:
        for line in lines:
            if "Traceback (most recent call last)" not in line and '"level": "error"' not in line:
                continue
            try:
                entry = json.loads(line)
            except ValueError:
                found[line.strip()[:200]] += 1
                continue
            exception = str(entry.get("exception", "")).strip().splitlines()[-1:]
            found[f"{entry.get('event')} {entry.get('path', '')} {' '.join(exception)}"[:400]] += 1
    for what, count in found.items():
        tally.fell_short("afterwards", "an error in the log", f"{count:,} × {what}")
