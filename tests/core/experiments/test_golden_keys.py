"""Golden keys: equal keys mean interchangeable results, also between two releases.

``tests/golden/keys.json`` holds the hashed payload and the key of one task of every kind, for fixed parameters. A drift
throws away every result computed so far, so it must be meant: raise the kind's version, then run this file as a
script to write the new keys down.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from creditgrid.core.datasets import DatasetRef
from creditgrid.core.experiment import Experiment
from creditgrid.core.experiments.registry import registry
from creditgrid.core.experiments.stages import STAGES, code_task
from creditgrid.core.task import Task

CREDIT_RECOVERY = registry().experiments["credit_recovery"]
DYNAMICS = registry().experiments["dynamics"]
EXPLOITABILITY = registry().experiments["exploitability"]
LINESEARCH = registry().experiments["linesearch"]
SNAPSHOT_TIME = registry().experiments["snapshot_time"]

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "keys.json"
DATASET = DatasetRef("pictures", "0123456789abcdef" * 4, 50_000, 10_000, 10, (3, 32, 32), {"package": "parquet"})
METHODS = ("oracle_bp", "dfa", "vec", "scalar_cb", "state_bridge")
IMPORTED = "L4-d256-D3072-C10-" + "0123456789abcdef" * 4
RUN = {"train_epochs": 50, "residual_add": False, "w2_std": 0.05, "batch_size": 64, "lr": 3e-3, "weight_decay": 0.1}
PROBED = {"checkpoint_epoch": 20, "residual_add": False, "w2_std": 0.05, "probe_seed": 7}
STEP = {"step_batch_size": 256, "step_weight_decay": 1e-3, "step_noise": 0.01}
SHIFT = {"rule": "target_shift", "kappa": 0.1, "k": 12, "clamp": None}
CELLS: list[tuple[Experiment, str, dict[str, Any]]] = [
    *((LINESEARCH, f"{method} default", {"method": method, "eta": 1e-3}) for method in METHODS),
    *(
        (
            LINESEARCH,
            f"{method} varied",
            {"method": method, "eta": 1e-3, "update_head": "always", **PROBED},
        )
        for method in METHODS
    ),
    (LINESEARCH, "dfa step", {"method": "dfa", "eta": 1e-3, **STEP}),
    (LINESEARCH, "vec imported", {"method": "vec", "eta": 1e-3, "checkpoint": IMPORTED}),
    (SNAPSHOT_TIME, "vec default", {"method": "vec"}),
    (
        SNAPSHOT_TIME,
        "vec varied",
        {"method": "vec", "eta": 1e-3, "extra_batches": 12, **PROBED},
    ),
    (EXPLOITABILITY, "dfa default", {"method": "dfa"}),
    (
        EXPLOITABILITY,
        "dfa varied",
        {"method": "dfa", "eval": "same", **PROBED, **STEP, **SHIFT},
    ),
    (CREDIT_RECOVERY, "scalar_cb default", {"method": "scalar_cb"}),
    (
        CREDIT_RECOVERY,
        "scalar_cb varied",
        {"method": "scalar_cb", "cb_source": "delta_L", **PROBED},
    ),
    (DYNAMICS, "bp default", {"logs_every": 50}),
    (DYNAMICS, "bp varied", {"train_rule": "bp", "logs_every": 10, **RUN}),
    (DYNAMICS, "dfa default", {"train_rule": "dfa", "logs_every": 50}),
    (
        DYNAMICS,
        "dfa varied",
        {"train_rule": "dfa", "random_targets": True, "logs_every": 10, **RUN},
    ),
]


def tasks() -> dict[str, Task]:
    """Cells of every experiment and method, and the stages below them, with defaults and with other values.

    A stage that serves several cells is named after the first; of a training run the last checkpoint is enough.
    """
    found: dict[str, Task] = {}
    seen: set[str] = set()
    for experiment, which, values in CELLS:
        measure, below = experiment.cell(experiment.params(dataset="pictures", **values), DATASET)
        found[f"{experiment.name} {which}"] = measure
        for task in [*(task for task in below if task.kind != "train"), below_last(below)]:
            if task is not None and task.key not in seen:
                seen.add(task.key)
                found[f"{task.kind} of {experiment.name} {which}"] = task
    found["code"] = code_task("0123456789abcdef" * 4)
    return dict(sorted(found.items()))


def below_last(below: Sequence[Task]) -> Task | None:
    """The last checkpoint of the training run among these."""
    return max((task for task in below if task.kind == "train"), key=lambda task: task.params["epoch"], default=None)


def entry(task: Task) -> dict[str, Any]:
    return {"key": task.key, "payload": task.payload()}


def test_every_kind_has_golden_keys() -> None:
    golden = json.loads(GOLDEN.read_text())
    assert set(golden) == set(tasks())
    stages = {"data", "probe", "feedback", "train", "fit", "checkpoint", "code"}
    assert {name.split()[0] for name in golden} == stages | {experiment.name for experiment, _, _ in CELLS}
    assert {kind.name for kind in STAGES} == stages
    assert len({entry["key"] for entry in golden.values()}) == len(golden)


@pytest.mark.parametrize("name", sorted(tasks()))
def test_the_key_is_the_golden_one(name: str) -> None:
    golden, task = json.loads(GOLDEN.read_text())[name], tasks()[name]
    if golden["key"] == task.key:
        return
    before, after = golden["payload"], task.payload()
    drift = {
        part: {
            field: (before[part].get(field, "absent"), after[part].get(field, "absent"))
            for field in sorted({*before[part], *after[part]})
            if before[part].get(field, "absent") != after[part].get(field, "absent")
        }
        for part in ("params", "parents")
    }
    if after["version"] == before["version"] and not drift["parents"]:
        advice = f"raise the version of the task kind {task.kind!r} if this is meant"
    else:
        advice = "its version or a parent's key has changed"
    pytest.fail(f"the identity of {name} drifted: {drift}; {advice}, then run {Path(__file__).name} as a script")


@pytest.mark.parametrize("name", sorted(tasks()))
def test_the_golden_key_is_the_hash_of_its_payload_by_the_standard_library(name: str) -> None:
    golden = json.loads(GOLDEN.read_text())[name]
    text = json.dumps(golden["payload"], sort_keys=True, separators=(",", ":"))
    assert hashlib.sha256(text.encode()).hexdigest() == golden["key"]


if __name__ == "__main__":
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(json.dumps({name: entry(task) for name, task in tasks().items()}, indent=1) + "\n")
