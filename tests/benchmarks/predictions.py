"""Ten sweeps of different size: what their plans predict, and what they take.

``python -m tests.benchmarks.predictions`` prints the table alone, in about five minutes on two quiet cores. The sweeps
run one after the other on a real service with Ray and an empty data directory, twice, with other seeds the second time.
So the first plans know only the measurement of the machine, and the second ones what the first calls took.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from creditgrid.client import Client
from creditgrid.core.states import RESULT
from creditgrid.core.wire import PlanView

from .service import serving

CIFAR = Path(os.environ.get("CREDITGRID_TEST_CIFAR10", Path(__file__).parents[3] / "shared/data/cifar10-jpeg"))
WANTED_FRESH, WANTED, WANTED_OF_TEN = 3.0, 1.5, 9
"""Factors between predicted and measured, in either direction."""
WANTED_BYTES, WANTED_ETA = 0.1, 0.25
LONG_S = 5.0
"""The time left of shorter sweeps is not judged."""
CALIBRATION_S = 180.0
POLL_S = 0.25


class Run(NamedTuple):
    """One sweep: its plan before it started, its seconds and bytes, and how far its status was off at half time."""

    plan: PlanView
    seconds: float
    bytes: int
    eta_error: float | None

    @property
    def ratio(self) -> float:
        """Predicted by measured."""
        return (self.plan.estimated_seconds or float("nan")) / self.seconds


def specs(seed: int) -> Iterator[Mapping[str, Any]]:
    """Ten sweeps, from a second to half a minute on two cores; none shares a training with another."""
    cifar, both = str(CIFAR.resolve()), [seed, seed + 1]
    eta = {"logspace": [1e-5, 1e-2, 7]}

    def spec(name: str, experiment: str, axes: Mapping[str, Any], **fixed: Any) -> Mapping[str, Any]:
        return {"name": name, "experiment": experiment, "fixed": fixed, "axes": axes}

    digits = {"dataset": "digits", "batch_size": 64}
    yield spec(
        "digits d64 50 epochs", "linesearch", {"seed": both, "method": ["dfa", "oracle_bp"], "eta": eta},
        **digits, d_hidden=64, train_epochs=50,
    )  # fmt: skip
    yield spec(
        "digits d128 50 epochs, fits", "credit_recovery", {"seed": both, "method": ["scalar_cb", "vec"]},
        **digits, d_hidden=128, train_epochs=50, fit_epochs=20,
    )  # fmt: skip
    yield spec(
        "digits d256 30 epochs, fits", "exploitability", {"seed": [seed, seed + 1, seed + 2], "method": ["vec"]},
        **digits, d_hidden=256, train_epochs=30, fit_epochs=10,
    )  # fmt: skip
    yield spec(
        "digits d512 10 epochs dfa", "dynamics", {"seed": both},
        **digits, d_hidden=512, train_epochs=10, train_rule="dfa",
    )  # fmt: skip
    yield spec(
        "CIFAR d64 4 epochs", "snapshot_time",
        {"seed": both, "method": ["dfa", "oracle_bp"], "checkpoint_epoch": [1, 4]},
        dataset=cifar, d_hidden=64, train_epochs=4,
    )  # fmt: skip
    yield spec(
        "CIFAR d64 1 epoch, fits", "linesearch", {"seed": [seed + 10], "method": ["vec", "state_bridge"], "eta": eta},
        dataset=cifar, d_hidden=64, train_epochs=1, fit_epochs=1,
    )  # fmt: skip
    yield spec(
        "CIFAR d128 2 epochs dfa", "dynamics", {"seed": [seed, seed + 1, seed + 2]},
        dataset=cifar, d_hidden=128, train_epochs=2, train_rule="dfa",
    )  # fmt: skip
    yield spec(
        "CIFAR d256 2 epochs", "linesearch",
        {"seed": both, "method": ["dfa", "oracle_bp"], "update_range": ["last1", "all"], "eta": eta},
        dataset=cifar, d_hidden=256, train_epochs=2,
    )  # fmt: skip
    yield spec(
        "CIFAR d256 1 epoch, fits", "exploitability", {"seed": [seed + 10], "method": ["dfa", "scalar_cb", "vec"]},
        dataset=cifar, d_hidden=256, train_epochs=1, fit_epochs=1,
    )  # fmt: skip
    yield spec(
        "CIFAR d512 1 epoch", "credit_recovery", {"seed": both, "method": ["dfa", "oracle_bp"]},
        dataset=cifar, d_hidden=512, train_epochs=1,
    )  # fmt: skip


def run(client: Client, spec: Mapping[str, Any]) -> Run:
    """Plan and run one sweep."""
    plan = client.plan(spec)
    started = time.perf_counter()
    sweep = client.submit(spec)
    statuses: list[tuple[float, float]] = []  # when, and the time left
    while not (view := sweep.refresh()).state.finished:
        if view.remaining_s is not None:
            statuses.append((time.perf_counter() - started, view.remaining_s))
        time.sleep(POLL_S)
    seconds = time.perf_counter() - started
    assert view.state in RESULT, [failure.cause for failure in sweep.failures()]
    error = None
    if statuses and seconds >= LONG_S:
        when, left = min(statuses, key=lambda moment: abs(moment[0] - seconds / 2))
        error = left / (seconds - when) - 1
    made = sum(task.bytes or 0 for task in sweep.tasks() if task.state == "succeeded")
    return Run(plan, seconds, made, error)


def calibrated(client: Client) -> PlanView:
    """Wait until the service knows how fast the machine is."""
    deadline = time.monotonic() + CALIBRATION_S
    spec = next(specs(0))
    while (plan := client.plan(spec)).estimated_seconds is None:
        if time.monotonic() > deadline:
            raise RuntimeError(f"nothing was measured: {plan.notes}")
        time.sleep(1.0)
    return plan


def measure() -> list[tuple[str, Run, Run]]:
    """For each sweep its name, its run on an empty ledger, and its run with other seeds after all of them."""
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)) as (url, _), Client(url, timeout=600) as client:
        calibrated(client)
        # All plans of the first round know the measurement of the machine alone, but each knows which data exists.
        first = list(specs(100))
        early = [client.plan(spec) for spec in first]
        fresh = []
        for spec, plan in zip(first, early, strict=True):
            done = run(client, spec)
            again = done.plan.tasks.get("data")
            if again is not None and again.cached and plan.estimated_seconds is not None:
                of_data = plan.tasks["data"].estimated_seconds or 0.0
                plan = plan.model_copy(update={"estimated_seconds": plan.estimated_seconds - of_data})  # noqa: PLW2901
            fresh.append(done._replace(plan=plan.model_copy(update={"estimated_bytes": done.plan.estimated_bytes})))
        later = [run(client, spec) for spec in specs(200)]
    return [(str(spec["name"]), one, two) for spec, one, two in zip(first, fresh, later, strict=True)]


def predictions_missed(console: Console) -> list[str]:
    """Measure, print the table, and name what is below the mark."""
    if not CIFAR.is_dir():
        console.print(f"predictions: skipped: no data at {CIFAR} (set CREDITGRID_TEST_CIFAR10)")
        return []
    load = os.getloadavg()[0]
    names = ("fresh", "measured, s", "ratio", "later", "measured, s", "ratio", "bytes", "time left at half")
    table = Table("predictions", *names)
    found = measure()
    for name, one, two in found:
        table.add_row(
            name,
            *(f"{value:.1f}" for value in (one.plan.estimated_seconds or 0, one.seconds)),
            f"{one.ratio:.2f}×",
            *(f"{value:.1f}" for value in (two.plan.estimated_seconds or 0, two.seconds)),
            f"{two.ratio:.2f}×",
            f"{(two.plan.estimated_bytes or 0) / max(two.bytes, 1):.3f}×",
            "" if two.eta_error is None else f"{two.eta_error:+.0%}",
        )
    console.print(table)
    wanted = f"fresh within {WANTED_FRESH:g}×, later {WANTED_OF_TEN} of {len(found)} within {WANTED:g}×"
    wanted += f", bytes within {WANTED_BYTES:.0%}, time left within {WANTED_ETA:.0%}"
    loads = f"load average {load:.1f} before and {os.getloadavg()[0]:.1f} after, on {os.cpu_count()} cores"
    console.print(f"wanted: {wanted}; {loads}")
    missed = []
    if not all(1 / WANTED_FRESH <= one.ratio <= WANTED_FRESH for _, one, _ in found):
        missed.append("fresh predictions")
    if sum(1 / WANTED <= two.ratio <= WANTED for *_, two in found) < WANTED_OF_TEN:
        missed.append("predictions")
    both = [each for _, *runs in found for each in runs]
    if any(abs((each.plan.estimated_bytes or 0) / max(each.bytes, 1) - 1) > WANTED_BYTES for each in both):
        missed.append("predicted bytes")
    if any(abs(two.eta_error) > WANTED_ETA for *_, two in found if two.eta_error is not None):
        missed.append("time left at half time")
    return missed


if __name__ == "__main__":
    below = predictions_missed(Console(width=150))
    if below:
        print(f"below the mark: {', '.join(below)}")
    sys.exit(1 if below else 0)
