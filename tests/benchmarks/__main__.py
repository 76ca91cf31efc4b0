"""``make bench``: ratios measured side by side in one run, with their conditions. Exits 1 when one is too low."""

from __future__ import annotations

import os
import platform
import statistics
import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from tests.benchmarks import predictions, science, service, sql

from creditgrid.core.datasets import resolve
from creditgrid.core.science.data import ImageData
from creditgrid.core.science.loading import load

SIZES = (1_000, 10_000, 100_000, 1_000_000)
MARK = 100_000
RAY_RATIO = 6.0
RESTART_S = 10.0
TRIALS = 200


def main() -> int:
    console = Console(width=110)
    folder = Path(os.environ.get("CREDITGRID_TEST_CIFAR10", Path(__file__).parents[3] / "shared/data/cifar10-jpeg"))
    torch.set_num_threads(os.cpu_count() or 1)
    console.print(
        f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__} with {torch.get_num_threads()} "
        f"threads, Python {platform.python_version()}; CIFAR-10, batch {science.BATCH}, width 256, 4 blocks; "
        f"medians of {science.ROUNDS} rounds by turns"
    )
    missed = []
    if not folder.is_dir():
        console.print(f"science: skipped: no data at {folder} (set CREDITGRID_TEST_CIFAR10)")
    else:
        data = ImageData.from_arrays(load(resolve(str(folder.resolve())).source))
        table = Table("", "unit", "ours", "plain loop", "ratio", "wanted")
        for item in science.all_comparisons(data):
            table.add_row(
                item.name, item.unit, f"{item.ours:,.0f}", f"{item.plain:,.0f}", f"{item.ratio:.1f}×", f"{item.wanted}×"
            )
            if item.ratio < item.wanted:
                missed.append(item.name)
        console.print(table)
    names = ("seconds", "µs a cell", "planning", "Ray alone", "ratio", "again, s", "controller, MB", "ledger, B a cell")
    table = Table("no-op cells", *names)
    costs: dict[int, service.Overhead] = {}
    for size in SIZES:  # by turns, so that both meet the same machine
        before, cost, after = service.ray_alone(size), service.overhead(size), service.ray_alone(size)
        costs[size], alone = cost, (before + after) / 2
        table.add_row(
            f"{size:,}",
            f"{cost.seconds:.1f}",
            f"{1e6 * cost.seconds / size:,.1f}",
            f"{1e6 * cost.planning_seconds / size:,.1f}",
            f"{1e6 * alone / size:,.1f}",
            f"{cost.seconds / alone:.1f}×",
            f"{cost.again_seconds:.1f}",
            f"{cost.megabytes:,.0f}",
            f"{cost.ledger_bytes / size:,.0f}",
        )
        if size >= MARK and cost.seconds > RAY_RATIO * alone:
            missed.append(f"{size:,} no-op cells (wanted: {RAY_RATIO:g}× Ray alone)")
    console.print(
        "service: from POST to committed rows, until POST is answered (planning), and Ray alone moving the parameters "
        "of the same cells to workers and their rows back, 100 a task; µs a cell; and the most memory of the "
        "controller above its start"
    )
    console.print(table)
    rate = MARK / costs[MARK].seconds
    console.print(
        f"service: {MARK:,} cells: {rate:,.0f} cells/s (wanted 5,000), {costs[MARK].megabytes:.0f} MB (wanted < 500)"
    )
    if rate < 5000 or costs[MARK].megabytes >= 500:
        missed.append("service")
    again = service.restart(MARK)
    console.print(
        f"restart after kill -9 with {again.finished:,} finished and {again.open:,} open cells: listens after "
        f"{again.listening_seconds:.1f} s, first call submitted after {again.seconds:.1f} s (wanted < {RESTART_S:.0f})"
    )
    if again.seconds >= RESTART_S:
        missed.append("restart")
    missed += sql_missed(console)
    missed += predictions.predictions_missed(console)
    seconds = service.ray_tune(TRIALS)
    console.print(
        f"Ray Tune: {TRIALS} no-op trials in {seconds:.1f} s: {TRIALS / seconds:.1f} trials/s; "
        f"the service does {rate * seconds / TRIALS:,.0f} cells in the time of one trial"
    )
    if missed:
        console.print(f"below the mark: {', '.join(missed)}")
    return 1 if missed else 0


def sql_missed(console: Console) -> list[str]:
    """Measure SQL, print it, and name what is below the mark."""
    missed = []
    beside, streams = sql.measure()
    table = Table(f"SQL, {sql.ROWS:,} rows", "ours, ms", "plain DuckDB, ms", "ratio", "wanted")
    for asked in beside:
        table.add_row(asked.name, f"{asked.ours:,.0f}", f"{asked.plain:,.0f}", f"{asked.ratio:.2f}×", "≤ 1.2×")
    console.print(table)
    for stream in streams:
        console.print(
            f"{stream.name}: first bytes after {stream.first:.2f} s, then {stream.rate:,.0f} MB/s of Arrow (wanted "
            f"{sql.WANTED_RATE:.0f}); this process grew by {stream.grown:,.0f} MB"
        )
    if statistics.median(asked.ratio for asked in beside) > sql.WANTED_RATIO:
        missed.append("SQL")
    if min(stream.rate for stream in streams) < sql.WANTED_RATE:
        missed.append("streaming")
    return missed


sys.exit(main())
