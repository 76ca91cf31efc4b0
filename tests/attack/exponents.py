"""How the time of an answer grows with the size of a body: no validation path may be quadratic."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence

import httpx

from .attempts import Attempt, send
from .bodies import LARGEST, LARGEST_YAML, content_type, growing, largest
from .tally import Tally

CORPUS = "growing bodies"
STEEPEST = 1.5
"""An exponent above this falls short: 1 is linear, 2 quadratic."""
FLOOR_S = 0.03
"""Times below this are mostly the request itself."""
LIMIT_S = 1.0
"""A refused body is answered by then, whatever its size up to 4 MiB."""
ACCEPTED_S = 60.0
"""A body that is accepted makes a plan, which may take longer."""
PARTS = (64, 16, 4, 1)
"""Sizes, as parts of the largest."""


def exponent(times: Sequence[tuple[int, float]]) -> float | None:
    """The slope of log time over log size, of the sizes whose time is not mostly that of a request; None: too few."""
    points = [(math.log(size), math.log(seconds)) for size, seconds in times if seconds > FLOOR_S]
    if len(points) < 2:
        return None
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points)


def attack(http: httpx.Client, until: float, seed: int, tally: Tally) -> list[tuple[str, str]]:
    """Send each kind of body in growing sizes; returns the exponent of each kind and its largest body's time."""
    found = []
    kinds = sorted(growing().items())
    random.Random(seed).shuffle(kinds)
    for name, make in kinds:
        if time.monotonic() > until:
            break
        times = measured(http, name, make, tally)
        slope = exponent(times)
        if slope is not None and slope > STEEPEST:  # a disturbed machine does not disturb the same sizes twice
            again = measured(http, name, make, tally)
            times = [(size, min(one, other)) for (size, one), (_, other) in zip(times, again, strict=False)]
            slope = exponent(times)
        if slope is not None and slope > STEEPEST:
            shown = ", ".join(f"{size:,} bytes {seconds:.2f} s" for size, seconds in times)
            tally.fell_short(CORPUS, "grows faster than its size", f"{name}: exponent {slope:.2f}: {shown}")
        size, seconds = times[-1]
        found.append((name, f"{'below' if slope is None else f'{slope:.2f}'}: {size:,} bytes in {seconds:.2f} s"))
    return found


def measured(http: httpx.Client, name: str, make: Callable[[int], bytes], tally: Tally) -> list[tuple[int, float]]:
    """Size and seconds of each body of a kind, up to the first that takes far too long."""
    times = []
    most = LARGEST_YAML if content_type(name) == "application/yaml" else LARGEST
    for part in PARTS:
        body = largest(make, most // part)
        started = time.perf_counter()
        attempt = Attempt(
            f"{name}, {len(body):,} bytes",
            "POST",
            "/v1/plans",
            body,
            [("Content-Type", content_type(name))],
            limit_s=ACCEPTED_S,
        )
        answer = send(http, CORPUS, attempt, tally)
        seconds = time.perf_counter() - started
        times.append((len(body), seconds))
        if answer is not None and answer.is_error and seconds > LIMIT_S * tally.patience:
            tally.fell_short(CORPUS, f"refused after more than {LIMIT_S:g} s", f"{attempt.name}: {seconds:.1f} s")
        if answer is None or seconds > 10 * LIMIT_S:
            break
    return times
