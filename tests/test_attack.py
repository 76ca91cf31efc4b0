"""The attacks: what judges them finds what is wrong, and a short run against real services."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from attack.attempts import Attempt, judge
from attack.exponents import exponent
from attack.malformed import exchanges
from attack.queries import queries
from attack.tally import Tally

ROOT = Path(__file__).parent.parent
PROBLEM = {"content-type": "application/problem+json"}
CORPORA = (
    "hosts and origins",
    "credentials",
    "roles",
    "connections",
    "bodies",
    "growing bodies",
    "uploads",
    "queries",
    "slow connections",
    "generated",
    "chained",
    "floods",
)


@pytest.mark.parametrize(
    ("answer", "seconds", "kinds"),
    [
        (httpx.Response(400, headers=PROBLEM), 0.1, set()),
        (httpx.Response(503, headers=PROBLEM | {"retry-after": "5"}), 0.1, set()),
        (httpx.Response(503, headers=PROBLEM), 0.1, {"status 503"}),
        (httpx.Response(500, headers=PROBLEM), 0.1, {"status 500"}),
        (httpx.Response(400, text="bad"), 0.1, {"error that is no problem document"}),
        (httpx.Response(400, headers=PROBLEM), 1.5, {"slower than 1 s"}),
        (httpx.Response(200), 0.1, {"unexpected status"}),
    ],
)
def test_an_answer_that_falls_short_is_found(answer: httpx.Response, seconds: float, kinds: set[str]) -> None:
    tally = Tally()
    judge("corpus", Attempt("name", "GET", "/", statuses=(400,)), answer, seconds, tally)
    assert {kind for _, kind in tally.counted} == kinds


@pytest.mark.parametrize("power", [1.0, 1.3, 2.0])
def test_an_exponent_is_the_slope_of_the_times(power: float) -> None:
    times = [(size, 1e-7 * size**power + 1e-9) for size in (2**n for n in range(10, 24))]
    assert exponent(times) == pytest.approx(power, abs=0.01)


def test_times_that_are_mostly_the_request_have_no_exponent() -> None:
    assert exponent([(size, 0.002) for size in (1_000, 10_000, 100_000)]) is None


def test_the_corpora_are_large_and_their_names_unique() -> None:
    names = [exchange.name for exchange in exchanges()]
    assert len(names) == len(set(names)) > 100
    assert len(queries()) >= 200


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_short_attack_finds_nothing_that_falls_short() -> None:
    """``make attack`` tries more."""
    command = [sys.executable, "-m", "tests.attack", "--minutes", "0.5", "--seed", "1", "--patience", "10"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        try:
            said, _ = process.communicate(timeout=580)
        finally:
            process.terminate()  # it ends all its processes
    text = said.decode()
    print(text)
    assert process.returncode == 0, text
    assert [corpus for corpus in CORPORA if f"│ {corpus} " not in text] == []
