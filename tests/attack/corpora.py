"""Sends the corpora: hostile bodies, each as a plan and, where that is refused, as a sweep; and hostile uploads."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from .attempts import Attempt, client, send
from .bodies import content_type, small_bodies
from .exponents import ACCEPTED_S, LIMIT_S
from .tally import Tally
from .uploads import uploads

BODIES, UPLOADS = "bodies", "uploads"
UPLOAD_S = 30.0
"""A process starts, imports torch and refuses the file by then, although another one is before it."""
AT_ONCE = 2
"""Uploads at the same time."""
REFUSED = (400, 409, 413, 415, 422)
CANARY = Path("/tmp/creditgrid-attacked")
"""The file that code in an upload would make if it ran."""


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


def attack_uploads(url: str, folder: Path, seconds: float, seed: int, tally: Tally) -> None:
    """Every upload, in random order, until the time is up: each is refused, and no code in it runs."""
    CANARY.unlink(missing_ok=True)
    folder.mkdir()
    some = sorted(uploads().items(), key=lambda item: item[0])
    random.Random(seed).shuffle(some)
    until = time.monotonic() + seconds

    def upload(number: int) -> None:
        name, made = some[number]
        if time.monotonic() > until:
            return
        path = folder / str(number)
        if callable(made):
            made(path)
        else:
            path.write_bytes(made)
        headers = [("Content-Type", "application/octet-stream"), ("Content-Length", str(path.stat().st_size))]
        with client(url) as http:
            attempt = Attempt(
                name, "POST", "/v1/checkpoints", _chunks(path), headers, limit_s=UPLOAD_S, statuses=REFUSED
            )
            send(http, UPLOADS, attempt, tally)
        path.unlink()

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(upload, range(len(some))))
    if CANARY.exists():
        tally.fell_short(UPLOADS, "code of an upload has run", f"{CANARY} exists")


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while data := file.read(2**20):
            yield data
