"""``make chaos``: a real service killed at random moments, and nothing lost. Exits 1 on any violation."""

from __future__ import annotations

import argparse
import os
import platform
import random
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from creditgrid.client.local_service import ended_by_signals

from .faults import FAULTS
from .run import Outcome, Recovery, RunResult, chaos


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--kills", type=int, default=30, help="how many [30]")
    parser.add_argument("--seed", type=int, help="of faults, moments and delays [a new one]")
    parser.add_argument("--minutes", type=float, default=30.0, help="no kill is made after these [30]")
    parser.add_argument("--only", choices=sorted(FAULTS), action="append", help="this fault alone, or several [all]")
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    console = Console(width=130, highlight=False, markup=False)
    command = f"python -m tests.chaos --kills {options.kills} --seed {seed}"
    command += "".join(f" --only {name}" for name in options.only or ())
    conditions(console)
    console.print(f"repeat: {command} (the seed fixes faults, points and delays; what they hit depends on the machine)")
    started = time.monotonic()

    def log(text: str) -> None:
        console.print(f"{time.monotonic() - started:6.1f} s  {text}")

    # A short path, whatever TMPDIR is: Ray's sockets are below it, and a socket's path has at most 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="cg-", dir="/tmp"))
    failed = True
    try:
        with ended_by_signals():
            outcome = chaos(folder, seed, options.kills, options.minutes, options.only or sorted(FAULTS), log)
        report(console, outcome)
        failed = bool(outcome.violations or outcome.missed)
    except (KeyboardInterrupt, SystemExit):
        failed = False  # the user stopped the run
        raise
    finally:
        if failed:
            console.print(f"data and logs are kept in {folder}; repeat: {command}")
        else:
            shutil.rmtree(folder)
    return 1 if failed else 0


def conditions(console: Console) -> None:
    """Print the machine and its software."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("ray", "deltalake", "torch", "sqlalchemy"))
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    console.print(
        f"{platform.machine()}, {os.cpu_count()} cores (load {load}), Linux {platform.release()}, "
        f"Python {platform.python_version()}, {packages}"
    )


def report(console: Console, outcome: Outcome) -> None:
    """Print the kills by fault and point, the recoveries, and every violation."""
    by_kind: dict[tuple[str, str], list[Recovery]] = defaultdict(list)
    for recovery in outcome.recoveries:
        by_kind[recovery.kill.fault.name, recovery.kill.point].append(recovery)
    table = Table(
        "fault", "moment", "kills", "first progress after (median, longest)", "degraded after", "calls run again"
    )
    for (fault, point), some in sorted(by_kind.items()):
        seconds = [recovery.seconds for recovery in some if recovery.seconds is not None]
        noticed = [recovery.noticed for recovery in some if recovery.noticed is not None]
        table.add_row(
            fault,
            point or "any",
            str(len(some)),
            f"{median(seconds):.1f} s, {max(seconds):.1f} s" if seconds else "",
            f"{max(noticed):.1f} s" if noticed else "",
            str(sum(recovery.restarts for recovery in some)),
        )
    console.print(table)
    console.print(f"{len(outcome.recoveries)} kills in {outcome.seconds:.0f} s, seed {outcome.seed}")
    if outcome.missed:
        console.print(f"never happened: {', '.join(outcome.missed)}")
    if outcome.disturbed is not None:
        report_run(console, "disturbed", outcome.disturbed)
    if outcome.undisturbed is not None:
        report_run(console, "undisturbed", outcome.undisturbed)
        console.print(
            f"lost {len(outcome.compared.lost)}, twice {len(outcome.compared.twice)}; "
            f"{outcome.views_seen:,} views checked meanwhile"
        )
    for violation in outcome.violations:
        console.print(f"VIOLATION {violation}")
    console.print("no violation" if not outcome.violations else f"{len(outcome.violations)} violations")


def report_run(console: Console, name: str, found: RunResult) -> None:
    """Print what a run made and what it left."""
    console.print(
        f"{name}: {found.sweeps} sweeps, {len(found.rows.cells):,} cells, {found.rows.count:,} rows, "
        f"{len(found.artifacts):,} artifacts, {found.calls:,} calls; run again {found.calls_again} calls "
        f"({found.tasks_again:,} tasks); {found.seconds:.0f} s"
    )
    if name == "undisturbed":
        return
    left = found.leftovers
    console.print(
        f"  left: {len(left.artifacts)} temporary artifacts, {len(left.saves)} saves, {len(left.aside)} set aside, "
        f"{len(left.unlogged)} files outside the log, {len(left.other)} others; {left.replaced} replaced for the vacuum"
    )


if __name__ == "__main__":
    sys.exit(main())
