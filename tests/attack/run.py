"""An attack: a service without a token and one with a token and few descriptors, under every corpus in turn."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from tests.service_process import ServiceProcess, Usage

from . import access, aftermath, connections, corpora, exponents, generated, roles, sweeps
from .attempts import client
from .floods import flood
from .held import Held
from .pulse import Pulse
from .tally import Tally

Log = Callable[[str], None]

TOKEN = "a token that only its owner knows"[:33].replace(" ", "-")
DESCRIPTORS = 256
SHARES = {
    "hosts and origins": 0.08,
    "bodies": 0.1,
    "growing bodies": 0.12,
    "uploads": 0.15,
    "queries": 0.1,
    "generated": 0.15,
    "credentials": 0.1,
    "generated with a token": 0.1,
}
"""Parts of the budget; malformed and slow connections and floods have no limit."""
FLOOD_S = 2.0, 20.0
"""The least and the most that a flood stays."""
WARM = 8
"""Queries at once before the attack: processes that a service keeps for queries are there before."""


@dataclass
class Outcome:
    """Everything that is reported."""

    tally: Tally
    usages: list[tuple[str, Usage]] = field(default_factory=list)
    exponents: list[tuple[str, str]] = field(default_factory=list)
    seconds: float = 0.0


def attack(folder: Path, minutes: float, seed: int, patience: float, log: Log) -> Outcome:
    """The whole attack below ``folder``. All processes that it starts have ended when it returns or raises."""
    outcome = Outcome(Tally(patience))
    started = time.monotonic()
    budget = 60 * minutes
    environment = {"CREDITGRID_QUERY_TIMEOUT_S": str(corpora.QUERY_TIMEOUT_S), "ATTACK_SECRET": corpora.SECRET}
    options = ("--runner", "local", "--log-format", "json")
    open_service = ServiceProcess(folder / "open", *options, environment=environment)
    token_file = folder / "token"
    token_file.write_text(TOKEN)
    token_file.chmod(0o600)
    options += ("--token-file", str(token_file))
    closed_service = ServiceProcess(folder / "closed", *options, descriptors=DESCRIPTORS)
    services = (open_service, closed_service)
    try:
        threads = [threading.Thread(target=_start, args=(service,)) for service in services]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        log("two services are ready")
        _attack_open(open_service, folder, budget, seed, outcome, log)
        _attack_closed(closed_service, folder, budget, seed, outcome, log)
    finally:
        for service in services:
            service.end_all()
    outcome.seconds = time.monotonic() - started
    return outcome


def _start(service: ServiceProcess) -> None:
    service.folder.mkdir(parents=True)
    service.start()


def _attack_open(service: ServiceProcess, folder: Path, budget: float, seed: int, outcome: Outcome, log: Log) -> None:
    """A service without a token: everything may reach it."""
    tally = outcome.tally

    def until(corpus: str) -> float:
        return time.monotonic() + SHARES[corpus] * budget

    with client(service.url) as http:
        found, document, before = _prepare(service, http)
        outcome.usages.append(("without a token, before", before))
        held = Held(service.address, found.ids["running"])
        with Pulse(service.url) as pulse:
            held.open()
            access.attack_origins(http, service.url, document, found, until("hosts and origins"), seed, tally)
            log("hosts and origins: done")
            connections.attack(service.address, tally)
            log("connections: done")
            corpora.attack_bodies(http, until("bodies"), seed, tally)
            log("bodies: done")
            outcome.exponents = exponents.attack(http, until("growing bodies"), seed, tally)
            log("growing bodies: done")
            secrets = folder / "elsewhere"
            secrets.mkdir()
            corpora.attack_queries(http, secrets / "secret.csv", service.data, until("queries"), seed, tally)
            log("queries: done")
            corpora.attack_uploads(service.url, folder / "uploads", SHARES["uploads"] * budget, seed, tally)
            log("uploads: done")
            seconds = SHARES["generated"] * budget
            generated.attack(folder / "generated", service.url, document, found, seconds, seed, tally)
            log("generated requests: done")
            held.close(time.monotonic() + 0.1 * budget, tally)
            log("slow connections: done")
        _after(service, before, pulse, "without a token", outcome)


def _attack_closed(service: ServiceProcess, folder: Path, budget: float, seed: int, outcome: Outcome, log: Log) -> None:
    """A service with a token and few descriptors: without the token nothing is answered, however many ask."""
    tally = outcome.tally
    with client(service.url, TOKEN) as http, client(service.url) as stranger:
        found, document, before = _prepare(service, http)
        outcome.usages.append(("with a token, before", before))
        with Pulse(service.url) as pulse:
            until = time.monotonic() + SHARES["credentials"] * budget
            access.attack_token(stranger, document, found, TOKEN, until, seed, tally)
            log("credentials: done")
            roles.attack(service.url, http, document, found, tally)
            log("roles: done")
            seconds = SHARES["generated with a token"] * budget
            generated.attack(
                folder / "generated-with-a-token", service.url, document, found, seconds, seed, tally, TOKEN
            )
            log("generated requests with a token: done")
            stay = min(FLOOD_S[1], max(FLOOD_S[0], 0.02 * budget))
            half, slow = DESCRIPTORS + 50, b"GET /healthz HTTP/1.1\r\nX-A: "
            flood(service.address, half, stay, tally, f"{half} half-open connections")
            flood(service.address, half, stay, tally, f"{half} endless headers", slow)
            most = 4 * DESCRIPTORS
            flood(service.address, most, stay, tally, f"{most} half-open connections")
            log(f"floods against {DESCRIPTORS} descriptors: done")
        if http.get(f"/v1/sweeps/{found.ids['succeeded']}").status_code != 200:
            tally.fell_short("floods", "the service does not recover", "GET of a sweep")
        _after(service, before, pulse, "with a token", outcome)


def _prepare(service: ServiceProcess, http: httpx.Client) -> tuple[sweeps.Sweeps, dict[str, object], Usage]:
    """Sweeps in every state, the OpenAPI document, and what the service holds when it has done each thing once."""
    found = sweeps.make(http, 0)
    document = http.get("/openapi.json").raise_for_status().json()
    http.get(f"/v1/sweeps/{found.ids['succeeded']}/summary").raise_for_status()
    with ThreadPoolExecutor(WARM) as pool:
        list(pool.map(lambda _: http.post("/v1/query", json={"sql": "SELECT count(*) FROM results"}), range(WARM)))
    return found, document, service.usage()


def _after(service: ServiceProcess, before: Usage, pulse: Pulse, name: str, outcome: Outcome) -> None:
    aftermath.check_pulse(pulse.beats, outcome.tally)
    if service.alive:
        outcome.usages.append((f"{name}, afterwards", aftermath.check_quiet(service, before, outcome.tally)))
    aftermath.check_stop(service, outcome.tally)
