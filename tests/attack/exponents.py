"""How the time of an answer grows with the size of a body: no validation path may be quadratic."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence

import httpx

from .tally import Tally

STEEPEST = 1.5
"""An exponent above this falls short: 1 is linear, 2 quadratic."""
FLOOR_S = 0.05
"""Times below this are mostly the request itself."""
LIMIT_S = 1.0
"""A refused body is answered by then, whatever its size up to 4 MiB."""
LARGEST = 4 * 2**20 - 1000
ROUNDS = 2
Made = Callable[[int], bytes]


def exponent(times: Sequence[tuple[int, float]]) -> float | None:
    """The slope of log time over log size, of the sizes whose time is not mostly that of a request; None: too few."""
    points = [(math.log(size), math.log(seconds)) for size, seconds in times if seconds > FLOOR_S]
    if len(points) < 3:
        return None
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points)


def attack(http: httpx.Client, growing: Mapping[str, Made], until: float, tally: Tally) -> list[tuple[str, str]]:
    """Send each kind of body in doubled sizes; returns what was found of each kind, for the report."""
    corpus, found = "growing bodies", []
    for name, made in growing.items():
        if time.monotonic() > until:
            break
        times: list[tuple[int, float]] = []
        number = 250
        while len(body := made(number)) <= LARGEST:
            seconds, status = _fastest(http, body, corpus, f"{name} × {number:,}", tally)
            times.append((len(body), seconds))
            if seconds > LIMIT_S and status >= 400:
                tally.fell_short(corpus, f"slower than {LIMIT_S:g} s", f"{name}: {len(body):,} bytes: {seconds:.1f} s")
                if seconds > 4 * LIMIT_S:
                    break
            number *= 2
        slope = exponent(times)
        if slope is not None and slope > STEEPEST:
            shown = ", ".join(f"{size:,} bytes {seconds:.2f} s" for size, seconds in times[-4:])
            tally.fell_short(corpus, "grows faster than its size", f"{name}: exponent {slope:.2f}: {shown}")
        largest = f"{times[-1][0]:,} bytes in {times[-1][1]:.2f} s" if times else ""
        found.append((name, f"{'—' if slope is None else f'{slope:.2f}'} ({largest})"))
    return found


def _fastest(http: httpx.Client, body: bytes, corpus: str, name: str, tally: Tally) -> tuple[float, int]:
    best, status = math.inf, 0
    kind = "application/json" if body.lstrip()[:1] in (b"{", b"[") else "application/yaml"
    for _ in range(ROUNDS):
        started = time.perf_counter()
        try:
            answer = http.post("/v1/plans", content=body, headers={"Content-Type": kind})
        except httpx.HTTPError as error:
            tally.attempt(corpus, name, "no answer", time.perf_counter() - started)
            tally.fell_short(corpus, "no answer", f"{name}: {type(error).__name__}")
            return time.perf_counter() - started, 0
        seconds, status = time.perf_counter() - started, answer.status_code
        tally.attempt(corpus, name, status, seconds)
        if status >= 500 and not (status == 503 and "retry-after" in answer.headers):
            tally.fell_short(corpus, f"status {status}", f"{name}: {answer.text[:200]}")
        best = min(best, seconds)
        if best > LIMIT_S:
            break
    return best, status
