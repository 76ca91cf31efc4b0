"""The same spec from two empty stores gives the same rows and the same artifacts, bit for bit."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from creditgrid.core.experiments.linesearch import COLUMNS
from creditgrid.service.assembly import assemble
from creditgrid.service.settings import Settings

SPEC: dict[str, Any] = {
    "name": "twice",
    "experiment": "linesearch",
    "fixed": {"dataset": "digits", "d_hidden": 32, "num_blocks": 2, "train_epochs": 2, "fit_epochs": 1},
    "axes": {
        "seed": [3],
        "checkpoint_epoch": [0, 2],
        "method": ["dfa", "scalar_cb", "vec", "oracle_bp"],
        "update_range": ["last1", "all"],
        "eta": [1e-3, 1e-2],
    },
}


def run(folder: Path, spec: dict[str, Any]) -> tuple[dict[str, dict[str, Any]], dict[str, bytes]]:
    """Rows by cell and artifacts by key of a sweep in a new data directory."""
    services = assemble(Settings(data_dir=folder, runner="local"))
    services.scheduler.start()
    try:
        sweep, _ = services.scheduler.submit(spec)
        deadline = time.monotonic() + 120
        while not services.views.sweep(sweep).state.finished:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert services.views.sweep(sweep).state == "succeeded", services.views.failures(sweep)
        dataset = services.results.dataset()
        assert dataset is not None
        table: pa.Table = dataset.to_table(columns=["cell", *COLUMNS])
    finally:
        services.scheduler.stop(0)
    artifacts = {key: services.store.read(key) for key in sorted(services.store.keys())}
    return {row.pop("cell"): row for row in table.to_pylist()}, artifacts


@pytest.mark.timeout(300)
def test_the_same_spec_twice_is_the_same_bits(tmp_path: Path) -> None:
    rows, artifacts = run(tmp_path / "first", SPEC)
    rows_again, artifacts_again = run(tmp_path / "second", SPEC)
    assert len(rows) == 32
    assert rows == rows_again
    assert artifacts == artifacts_again

    # A checkpoint that was asked for alone is the one that was made on the way to a later epoch.
    alone, alone_artifacts = run(
        tmp_path / "alone", SPEC | {"axes": SPEC["axes"] | {"checkpoint_epoch": [2], "eta": [1e-2]}}
    )
    assert alone_artifacts.items() <= artifacts.items()
    for cell, row in alone.items():
        assert row == pytest.approx(rows[cell], rel=1e-6, abs=1e-7)
