"""Sends the corpora: hostile bodies (each as a plan and, where that is refused, as a sweep), uploads and queries."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
from tests import sql_attacks

from .attempts import Attempt, client, send
from .bodies import content_type, small_bodies
from .exponents import ACCEPTED_S, LIMIT_S
from .queries import ANSWERED, Query, queries
from .tally import Tally
from .uploads import uploads

BODIES, UPLOADS, QUERIES = "bodies", "uploads", "queries"
UPLOAD_S = 30.0
"""A process starts, imports torch and refuses the file by then, although another one is before it."""
AT_ONCE = 2
"""Uploads at the same time."""
QUERY_TIMEOUT_S = 3.0
"""The time limit of a query, as a setting of the service under attack."""
QUERY_S = QUERY_TIMEOUT_S + 4.0
"""A query is answered by then: it may wait for others, run, and be stopped."""
SECRET = "a secret of another program"
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


def attack_queries(http: httpx.Client, secret: Path, data: Path, until: float, seed: int, tally: Tally) -> None:
    """Every query, in random order, until the time is up: nothing is written, no file is read, none works for ever."""
    secret.write_text(f"name,value\nsecret,{SECRET}\n")
    before = sorted(secret.parent.iterdir())
    others = sql_attacks.queries(str(secret), str(secret.with_name("stolen")))
    some = sorted(queries().items()) + [(name, Query(sql, ANSWERED)) for name, sql in sorted(others.items())]
    random.Random(seed).shuffle(some)
    for name, query in some:
        if time.monotonic() > until:
            break
        sql = query.sql.replace("{secret}", str(secret)).replace("{data}", str(data))
        body, headers = json.dumps({"sql": sql}).encode(), [("Content-Type", "application/json")]
        attempt = Attempt(name, "POST", "/v1/query?format=csv", body, headers, QUERY_S, query.statuses, True)
        answer = send(http, QUERIES, attempt, tally)
        if answer is not None and SECRET in answer.text:
            tally.fell_short(QUERIES, "a secret in an answer", f"{name}: {answer.text[:200]}")
    if sorted(secret.parent.iterdir()) != before:
        tally.fell_short(QUERIES, "a file was written", f"in {secret.parent}")


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while data := file.read(2**20):
            yield data
