"""One hostile HTTP request, and what its answer must be."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from .tally import Tally

PROBLEM = "application/problem+json"
WAIT_S = 150.0
"""A request without an answer by then has failed."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """A request. ``limit_s``: by then it must be answered; ``statuses``: the only ones allowed, besides a busy 503."""

    name: str
    method: str
    path: str
    content: bytes | Iterable[bytes] | None = None
    headers: Sequence[tuple[str, str | bytes]] = ()
    limit_s: float = 1.0
    statuses: Collection[int] | None = None
    may_be_cut: bool = False  # an answer that has started may end early, which its reader sees


def send(http: httpx.Client, corpus: str, attempt: Attempt, tally: Tally) -> httpx.Response | None:
    """Send it and judge the answer; None if there is none."""
    started = time.perf_counter()
    try:
        answer = http.request(attempt.method, attempt.path, content=attempt.content, headers=list(attempt.headers))
    except httpx.HTTPError as error:
        seconds = time.perf_counter() - started
        if attempt.may_be_cut and "incomplete" in str(error) and seconds <= attempt.limit_s * tally.patience:
            tally.attempt(corpus, attempt.name, "cut off", seconds)
            return None
        tally.attempt(corpus, attempt.name, "no answer", seconds)
        tally.fell_short(corpus, "no answer", f"{attempt.name}: {type(error).__name__} {error} after {seconds:.1f} s")
        return None
    seconds = time.perf_counter() - started
    tally.attempt(corpus, attempt.name, answer.status_code, seconds)
    judge(corpus, attempt, answer, seconds, tally)
    return answer


def judge(corpus: str, attempt: Attempt, answer: httpx.Response, seconds: float, tally: Tally) -> None:
    """Record where an answer falls short."""
    status, shown = answer.status_code, f"{attempt.name}: {attempt.method} {attempt.path[:80]}"
    busy = status == 503 and "retry-after" in answer.headers
    if status >= 500 and not busy:
        tally.fell_short(corpus, f"status {status}", f"{shown}: {answer.text[:200]}")
    if seconds > attempt.limit_s * tally.patience:
        tally.fell_short(corpus, f"slower than {attempt.limit_s:g} s", f"{shown}: {status} after {seconds:.1f} s")
    if status >= 400 and not answer.headers.get("content-type", "").startswith(PROBLEM):
        tally.fell_short(corpus, "error that is no problem document", f"{shown}: {status} {answer.text[:100]!r}")
    if attempt.statuses is not None and status not in attempt.statuses and not busy and status < 500:
        wanted = ", ".join(map(str, sorted(attempt.statuses)))
        tally.fell_short(corpus, "unexpected status", f"{shown}: {status} (expected {wanted}) {answer.text[:150]}")


def client(url: str, token: str | None = None, **options: Any) -> httpx.Client:
    """A client for one thread, which keeps its connection."""
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    return httpx.Client(base_url=url, headers=headers, timeout=WAIT_S, trust_env=False, **options)
