"""Sends the corpora of hostile bodies, each as a plan and, where that is refused, also as a sweep."""

from __future__ import annotations

import random
import time

import httpx

from .attempts import Attempt, send
from .bodies import content_type, small_bodies
from .exponents import ACCEPTED_S, LIMIT_S
from .tally import Tally

BODIES = "bodies"


def attack_bodies(http: httpx.Client, until: float, seed: int, tally: Tally) -> None:
    """Every small body, in random order, until the time is up; the largest ones are those of ``exponents``."""
    some = sorted(small_bodies().items())
    random.Random(seed).shuffle(some)
    for name, body in some:
        if time.monotonic() > until:
            return
        refused = _send(http, name, "/v1/plans", body, tally)
        if refused:
            _send(http, name, "/v1/sweeps", body, tally)


def _send(http: httpx.Client, name: str, path: str, body: bytes, tally: Tally) -> bool:
    """Whether it was refused."""
    attempt = Attempt(name, "POST", path, body, [("Content-Type", content_type(name))], limit_s=ACCEPTED_S)
    started = time.perf_counter()
    answer = send(http, BODIES, attempt, tally)
    seconds = time.perf_counter() - started
    refused = answer is not None and answer.is_error
    if refused and seconds > LIMIT_S * tally.patience:
        tally.fell_short(BODIES, f"refused after more than {LIMIT_S:g} s", f"{name}: {path}: {seconds:.1f} s")
    return refused
