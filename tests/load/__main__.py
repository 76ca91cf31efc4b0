"""``make load``: everyone at once beside a running sweep of 200,000 cells, and single things at full rate.

Prints Markdown tables with their conditions. Exits with 1 when a request was not answered, or the service holds more
after the last round than after the first.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import shutil
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from statistics import median

from rich.console import Console
from tests.service_process import ServiceProcess, allow_many_files

from creditgrid.client.local_service import ended_by_signals

from .crowd import Sizes
from .record import by_route, quantile, table
from .run import ALONE, Outcome, Plan, load, lost

COUNTED = ("descriptors", "threads", "children")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.load", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="beside everyone, in each round [60]")
    parser.add_argument("--cells", type=int, default=200_000, help="of a large sweep [200000]")
    parser.add_argument(
        "--huge", type=int, help="cells of the sweep that is submitted beside everyone [5 times --cells]"
    )
    parser.add_argument("--rounds", type=int, default=1, help="on one service [1]")
    parser.add_argument("--runner", choices=["ray", "local"], default="ray", help="[ray]")
    options = parser.parse_args()
    sizes = Sizes() if options.cells >= 50_000 else Sizes(20, 40.0, 2, 4.0, 2, 4.0, 0.5, 2, 4.0, 5)
    plan = Plan(options.seconds, options.cells, options.huge or 5 * options.cells, options.rounds, sizes)
    console = Console(width=150, highlight=False, markup=False, soft_wrap=True)
    started = time.monotonic()

    def log(text: str) -> None:
        console.print(f"{time.monotonic() - started:6.1f} s  {text}")

    allow_many_files()
    folder = Path(tempfile.mkdtemp(prefix="cg-", dir="/tmp"))
    service = ServiceProcess(folder / "load", "--runner", options.runner, "--log-format", "json")
    service.folder.mkdir()
    try:
        with ended_by_signals():
            service.start()
            outcome = asyncio.run(load(service, plan, log))
    finally:
        service.end_all()
        shutil.rmtree(folder)
    report(console, outcome, plan, options.runner)
    return 1 if outcome.problems else 0


def report(console: Console, outcome: Outcome, plan: Plan, runner: str) -> None:
    """Print the tables."""
    record, most = outcome.record, outcome.holdings.most
    console.print(f"\n{conditions(outcome, plan, runner)}\n")
    console.print(by_route(record))
    if outcome.delays:
        p50, p99 = (1000 * quantile(outcome.delays, share) for share in (0.5, 0.99))
        console.print(
            f"\nevents: {len(outcome.delays):,} received, p50 {p50:.0f} ms, p99 {p99:.0f} ms after their time"
        )
    rows = []
    for name, rates in outcome.rates.items():
        share = "" if name == ALONE else f"{100 * lost(outcome.rates, name):.0f} %"
        rows.append([name, str(len(rates)), f"{median(rates):,.0f}", share])
    console.print("\n" + table([f"{plan.cells:,} cells", "sweeps", "cells/s", "lost"], rows))
    usages = [("at the start", outcome.holdings.start)]
    usages += [(f"after round {number}", usage) for number, usage in enumerate(outcome.rounds, 1)]
    rows = [[name, f"{u.megabytes:,.0f}", str(u.descriptors), str(u.threads), str(u.children)] for name, u in usages]
    rows.append(["at most", f"{most('megabytes'):,.0f}", *(f"{most(name):.0f}" for name in COUNTED)])
    console.print("\n" + table(["the service's process", "MB", *COUNTED], rows))
    console.print("\n" + table(["one at a time", ""], [list(line) for line in outcome.lines]))
    for problem in outcome.problems:
        console.print(f"FELL SHORT {problem}")


def conditions(outcome: Outcome, plan: Plan, runner: str) -> str:
    """The machine, its software, and who did how much."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("uvicorn", "fastapi", "sqlalchemy", "duckdb", "ray"))
    sizes, seconds = plan.sizes, outcome.record.seconds / plan.rounds
    people = (
        f"{sizes.pollers} pollers ({sizes.polls_s:.0f}/s), {sizes.submitters} submitters ({sizes.submissions_s:.0f}/s)",
        f"{sizes.queriers} queriers ({sizes.queries_s:.0f} short and {sizes.heavy_s:g} heavy/s)",
        f"{sizes.viewers} viewers ({sizes.views_s:.0f}/s), {sizes.listeners} event listeners",
    )
    return (
        f"{platform.machine()}, {os.cpu_count()} cores for service, {runner} runner and load together, Python "
        f"{platform.python_version()}, {packages}. {plan.rounds} × {seconds:.0f} s beside sweeps of {plan.cells:,} "
        f"cells: {', '.join(people)}. The load generator takes {100 * outcome.generator_share:.0f} % of a core."
    )


if __name__ == "__main__":
    sys.exit(main())
