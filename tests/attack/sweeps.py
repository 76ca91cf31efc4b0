"""Sweeps in every state, so that requests meet each of them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

FINISHED = {"succeeded", "cached", "failed", "cancelled"}
NO_RETRY = {"max": 0}
WAIT_S = 60.0


@dataclass(slots=True)
class Sweeps:
    """Ids by state, and the keys that requests may name."""

    ids: dict[str, str] = field(default_factory=dict)
    tasks: list[str] = field(default_factory=list)
    artifacts: list[str] = field(default_factory=list)


def make(http: httpx.Client, first: int) -> Sweeps:
    """Submit sweeps until there is one in each state; ``first`` is a number that no earlier cell has.

    A running sweep waits to try its failed cell again, so it takes none of the runner's time from others.

    Raises:
        RuntimeError: a sweep does not reach its state.
    """
    found = Sweeps()
    ok = _spec("ok", first, base="ok")
    found.ids["succeeded"] = _submit(http, ok)
    _wait(http, found.ids["succeeded"], "succeeded")
    found.ids["cached"] = _submit(http, ok)
    _wait(http, found.ids["cached"], "cached")
    found.ids["failed"] = _submit(http, _spec("raise", first))
    found.ids["skipped"] = _submit(http, _spec("ok", first + 10, base="raise"))
    found.ids["diverged"] = _submit(http, _spec("nan", first))
    for state in ("failed", "skipped"):
        _wait(http, found.ids[state], "failed")
    _wait(http, found.ids["diverged"], "succeeded")
    for number, (state, step) in enumerate((("paused", "pause"), ("cancelled", "cancel"), ("running", None))):
        sweep = found.ids[state] = _submit(http, _spec("io", first + 10 * number, retry={"max": 50, "backoff_s": 600}))
        if step is not None:
            http.post(f"/v1/sweeps/{sweep}/{step}").raise_for_status()
    _wait(http, found.ids["cancelled"], "cancelled")
    cells = http.get(f"/v1/sweeps/{found.ids['succeeded']}/cells").raise_for_status().json()["items"]
    found.tasks = [cell["key"] for cell in cells]
    found.artifacts = sorted({key for cell in cells for key in cell["parents"].values()})
    return found


def _spec(
    behaviour: str, first: int, base: str = "none", cells: int = 6, retry: Mapping[str, float] = NO_RETRY
) -> dict[str, Any]:
    return {
        "name": f"{behaviour} {base} {first}",
        "experiment": "noop",
        "fixed": {"behaviour": behaviour, "base": base},
        "axes": {"x": {"range": [first, first + cells]}},
        "retry": dict(retry),
    }


def _submit(http: httpx.Client, spec: Mapping[str, Any]) -> str:
    return str(http.post("/v1/sweeps", json=spec).raise_for_status().json()["id"])


def _wait(http: httpx.Client, sweep: str, state: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while (view := http.get(f"/v1/sweeps/{sweep}").raise_for_status().json())["state"] != state:
        if time.monotonic() > deadline or view["state"] in FINISHED:
            raise RuntimeError(f"the sweep {view['name']!r} is {view['state']}, not {state}")
        time.sleep(0.05)
