"""Golden keys: equal keys mean interchangeable results, also between two releases.

``tests/golden/keys.json`` holds the hashed payload and the key of one task of every kind, for fixed parameters. A drift
throws away every result computed so far, so it must be meant: raise the kind's version, then run this file as a
script to write the new keys down.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from creditgrid.core.datasets import DatasetRef
from creditgrid.core.experiments.linesearch import LinesearchParams, cell
from creditgrid.core.task import Task

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "keys.json"
DATASET = DatasetRef("pictures", "0123456789abcdef" * 4, 50_000, 10_000, 10, (3, 32, 32), {"package": "parquet"})
VARIED = {"checkpoint_epoch": 20, "residual_add": False, "w2_std": 0.05, "probe_seed": 7, "update_head": "always"}


def tasks() -> dict[str, Task]:
    """One task of every kind, and the cells of every method, with defaults and with other values."""
    found: dict[str, Task] = {}
    for method in ("oracle_bp", "dfa", "vec", "scalar_cb"):
        for which, changes in (("default", {}), ("varied", VARIED)):
            params = LinesearchParams(dataset="pictures", method=method, eta=1e-3, **changes)
            measure, below = cell(params, DATASET)
            found[f"linesearch {method} {which}"] = measure
            for task in below:
                name = f"{task.kind} {method}" if task.kind == "fit" else task.kind
                found[name if task.kind == "data" else f"{name} {which}"] = task
    return dict(sorted(found.items()))


def entry(task: Task) -> dict[str, Any]:
    return {"key": task.key, "payload": task.payload()}


def test_every_kind_has_golden_keys() -> None:
    golden = json.loads(GOLDEN.read_text())
    assert set(golden) == set(tasks())
    assert {name.split()[0] for name in golden} == {"data", "probe", "feedback", "train", "fit", "linesearch"}


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
