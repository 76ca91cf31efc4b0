"""``make attack``: hostile requests, bodies, queries, uploads and connections against real services.

Prints what was tried and what fell short; exits with 1 when something did.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import shutil
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.table import Table
from tests.service_process import allow_many_files

from creditgrid.client.local_service import ended_by_signals

from .run import Outcome, attack


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.attack", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="of attacks, about [10]")
    parser.add_argument("--seed", type=int, help="of what is generated and drawn [a new one]")
    parser.add_argument("--patience", type=float, default=1.0, help="how many times the time limits, if disturbed [1]")
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    console = Console(width=150, highlight=False, markup=False)
    packages = ", ".join(f"{name} {version(name)}" for name in ("schemathesis", "uvicorn", "fastapi", "duckdb"))
    console.print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {packages}")
    command = f"python -m tests.attack --minutes {options.minutes:g} --seed {seed}"
    console.print(f"repeat: {command}")
    allow_many_files()
    started = time.monotonic()

    def log(text: str) -> None:
        console.print(f"{time.monotonic() - started:6.1f} s  {text}")

    folder = Path(tempfile.mkdtemp(prefix="cg-", dir="/tmp"))
    failed = True
    try:
        with ended_by_signals():
            outcome = attack(folder, options.minutes, seed, options.patience, log)
        report(console, outcome)
        failed = bool(outcome.tally.counted)
    except (KeyboardInterrupt, SystemExit):
        failed = False  # the user stopped the run
        raise
    finally:
        if failed:
            console.print(f"data and logs are kept in {folder}; repeat: {command}")
        else:
            shutil.rmtree(folder)
    return 1 if failed else 0


def report(console: Console, outcome: Outcome) -> None:
    """Print the attempts by corpus, what the services held, and what fell short."""
    tally = outcome.tally
    table = Table("corpus", "attempts", "answers", "slowest", "fell short")
    for corpus, line in tally.lines.items():
        answers = ", ".join(f"{answer} × {count:,}" for answer, count in sorted(line.answers.items()))
        slowest = f"{line.slowest:.2f} s {line.slowest_name[:50]}" if line.attempts else ""
        table.add_row(corpus, f"{line.attempts:,}", answers, slowest, str(line.short or ""))
    console.print(table)
    if outcome.exponents:
        table = Table("growing body", "exponent of its time")
        for row in outcome.exponents:
            table.add_row(*row)
        console.print(table)
    for name, usage in outcome.usages:
        console.print(
            f"{name}: {usage.megabytes:,.0f} MB, {usage.descriptors} descriptors, {usage.threads} threads, "
            f"{usage.children} child processes"
        )
    for shortcoming in tally.shortcomings:
        console.print(f"FELL SHORT {shortcoming}")
    for (corpus, kind), count in tally.counted.items():
        if count > 1:
            console.print(f"{corpus}: {kind}: {count} times")
    count = sum(tally.counted.values())
    console.print(f"{tally.attempts:,} attempts in {outcome.seconds:.0f} s; {count or 'nothing'} fell short")


if __name__ == "__main__":
    sys.exit(main())
