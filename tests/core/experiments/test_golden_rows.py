"""Golden rows: the shipped methods, rules and experiments give the rows that they gave before.

``tests/golden/rows.json`` holds small sweeps of every experiment with their measured rows, in full digits, as they were
before methods and rules were units. On the recorded processor and torch, rows are equal bit for bit. Elsewhere sums are
made in another order, so they agree to 1e-6, and the test's output says so.

Run this file as a script to write the rows down, and only for rows that are meant to change.
"""

from __future__ import annotations

import itertools
import json
import math
import platform
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import torch

from creditgrid.core.datasets import resolve
from creditgrid.core.experiments.registry import registry
from creditgrid.core.spec.model import parse
from creditgrid.core.spec.validation import validate
from creditgrid.core.task import Arrays, Output, Task

Values: TypeAlias = dict[str, Any]

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "rows.json"
CPU = torch.device("cpu")
NETWORK: Values = {
    "dataset": "digits",
    "seed": 3,
    "num_blocks": 3,
    "d_hidden": 16,
    "w2_std": 0.2,
    "batch_size": 64,
    "train_epochs": 2,
    "lr": 3e-3,
}
CREDITS: tuple[Values, ...] = (
    {"method": "oracle_bp"},
    {"method": "oracle_bp", "oracle_reduction": "sum"},
    {"method": "dfa"},
    {"method": "vec"},
    {"method": "scalar_cb"},
    {"method": "scalar_cb", "cb_source": "delta_L"},
    {"method": "state_bridge"},
)
ONE_EACH = tuple(credit for credit in CREDITS if len(credit) == 1)
RULES: tuple[Values, ...] = (
    {"rule": "inner_product"},
    {"rule": "cosine"},
    {"rule": "target_shift", "kappa": 0.3},
)
STEP: Values = {"step_weight_decay": 0.1, "step_noise": 0.02}


def every(*axes: Sequence[Values]) -> list[Values]:
    """Each combination of one setting of each axis."""
    return [dict(itertools.chain(*(one.items() for one in some))) for some in itertools.product(*axes)]


CELLS: Mapping[str, list[Values]] = {
    "linesearch": [
        *every(CREDITS, [{"norm_mode": "raw"}, {"norm_mode": "norm"}], [{"eta": 1e-3}, {"eta": 0.1}]),
        *every(ONE_EACH, [{"update_range": "last1"}, {"update_range": "last2"}], [{"eta": 0.01}]),
        *every(ONE_EACH, [{"residual_add": False, "eta": 0.01}]),
        {"method": "vec", "eta": 0.01, **STEP, "step_batch_size": 32},
        {"method": "dfa", "eta": 0.01, "step_noise": 0.1, "norm_mode": "norm"},
        {"method": "oracle_bp", "eta": 0.01, "update_head": "never"},
        {"method": "oracle_bp", "eta": 0.01, "update_head": "always", "update_range": "last1"},
        {"method": "dfa", "eta": 0.01, "train_rule": "dfa", "random_targets": True},
        {"method": "vec", "eta": 0.01, "vec_directions": 2, "vec_eps": 1e-2, "fit_lr": 3e-3},
        {"method": "scalar_cb", "eta": 0.01, "cb_lambda": 0.3, "cb_samples": 2, "cb_sigma": 0.2, "cb_ema": 0.9},
        {"method": "scalar_cb", "eta": 0.01, "cb_term_grad_weight": 0.1, "cb_source": "delta_L"},
        {"method": "state_bridge", "eta": 0.01, "fit_epochs": 2, "probe_seed": 9},
    ],
    "exploitability": [
        *every(CREDITS, RULES, [{"k": 3, "eta": 0.01}]),
        {"method": "vec", "k": 1, "eta": 0.1, "norm_mode": "raw", "clamp": None},
        {"method": "dfa", "k": 3, "eta": 0.1, "clamp": 0.01, **STEP},
        {"method": "oracle_bp", "k": 2, "eta": 0.1, "norm_mode": "raw", "eval": "same", "step_batch_size": 16},
        {"method": "scalar_cb", "k": 3, "eta": 0.1, "step_noise": 0.1, "checkpoint_epoch": 0},
        {"method": "state_bridge", "k": 5, "eta": 0.01, "residual_add": False},
    ],
    "snapshot_time": [
        *every(ONE_EACH, [{"checkpoint_epoch": 0}, {"checkpoint_epoch": 2}]),
        {"method": "vec", "update_range": "all", "eta": 0.01, "extra_batches": 2},
        {"method": "oracle_bp", "oracle_reduction": "sum", "update_range": "last2"},
    ],
    "credit_recovery": every(CREDITS, [{"num_blocks": 2}]),
    "dynamics": [
        {"train_rule": "bp", "num_blocks": 2, "train_epochs": 1},
        {"train_rule": "dfa", "num_blocks": 2, "train_epochs": 1, "residual_add": False},
    ],
}


def measured(experiment: str) -> list[list[Values]]:
    """The measured rows of each cell, computed in this process by one thread, in calls as a worker's."""
    declared = registry().experiment(experiment)
    kinds = registry().kinds_of(declared)
    fixed = NETWORK if experiment == "dynamics" else NETWORK | {"fit_epochs": 1}
    spec = parse({"name": "golden", "experiment": experiment, "fixed": fixed, "include": CELLS[experiment]})
    images = resolve("digits")
    cells = list(validate(spec, declared, list(kinds)).cells({"digits": images}))
    assert len(cells) == len(CELLS[experiment])
    planned = [declared.cell(params, images) for params in cells]
    made: dict[str, Arrays] = {}
    rows: dict[str, list[Values]] = {}
    everything = {task.key: task for cell, below in planned for task in (*below, cell)}
    groups: dict[str, list[Task]] = defaultdict(list)
    for task in everything.values():
        groups[task.group].append(task)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        # Stages come before the cells, and parents before children.
        for task in sorted(everything.values(), key=lambda task: task.kind == declared.measure.name):
            run = kinds[task.kind].run
            assert run is not None
            if task.key in made or task.key in rows:
                continue
            for item in run(groups[task.group], made, CPU):
                if isinstance(item, Output):
                    made[item.key] = item.arrays or {}
                    rows[item.key] = [dict(row) for row in item.rows or ()]
    finally:
        torch.set_num_threads(threads)
    return [rows[cell.key] for cell, _ in planned]


def machine() -> dict[str, str]:
    """What decides the order of sums."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    capability = torch.backends.cpu.get_cpu_capability()
    return {"torch": torch.__version__, "processor": (named or [platform.machine()])[0], "vector": capability}


@pytest.mark.parametrize("experiment", CELLS)
def test_rows_are_those_of_before(experiment: str) -> None:
    golden = json.loads(GOLDEN.read_text())
    wanted = golden["rows"][experiment]
    assert [one["cell"] for one in wanted] == CELLS[experiment]
    found = measured(experiment)
    if exact := machine() == golden["machine"]:
        print(f"{experiment}: compared bit for bit, by one thread")
    else:
        print(f"{experiment}: compared to 1e-6 relative; made on {golden['machine']}, and this is {machine()}")
    different = [
        (one["cell"], name, before[name], after.get(name))
        for one, rows in zip(wanted, found, strict=True)
        for before, after in zip(one["rows"], rows, strict=True)
        for name in before
        if not _equal(before[name], after.get(name), exact=exact)
    ]
    assert not different, f"{len(different)} values differ, such as {different[:5]}"


def _equal(before: float | None, after: float | None, *, exact: bool) -> bool:
    if exact or before is None or after is None:
        return before == after
    # A change of a loss is a difference of losses near 2.
    return math.isclose(before, after, rel_tol=1e-6, abs_tol=1e-6)


if __name__ == "__main__":
    made_here = {
        name: [{"cell": cell, "rows": rows} for cell, rows in zip(cells, measured(name), strict=True)]
        for name, cells in CELLS.items()
    }
    GOLDEN.write_text(json.dumps({"machine": machine(), "rows": made_here}, indent=1, allow_nan=False) + "\n")
