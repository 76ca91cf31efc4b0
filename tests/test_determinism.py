"""The same spec from two empty stores gives the same rows and the same artifacts, bit for bit, by 1 worker or by 2."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from creditgrid.core.experiments.registry import registry
from creditgrid.core.spec.text import SpecText
from creditgrid.service import services as module
from creditgrid.service.results.table import Results
from creditgrid.service.services import create_services
from creditgrid.service.settings import Settings

FIXED: dict[str, Any] = {"dataset": "digits", "d_hidden": 32, "num_blocks": 2, "train_epochs": 2, "fit_epochs": 1}
METHODS = ["dfa", "scalar_cb", "vec", "state_bridge", "oracle_bp"]
PROGRAM: dict[str, dict[str, Any]] = {
    "linesearch": {
        "fixed": FIXED | {"seed": 3, "step_weight_decay": 0.01, "step_noise": 0.01},
        "axes": {
            "checkpoint_epoch": [0, 2],
            "method": METHODS,
            "update_range": ["last1", "all"],
            "eta": [1e-3, 1e-2],
        },
    },
    "snapshot_time": {"fixed": FIXED | {"seed": 3}, "axes": {"checkpoint_epoch": [0, 2], "method": METHODS}},
    "exploitability": {
        "fixed": FIXED | {"seed": 3},
        "axes": {"method": METHODS, "rule": ["inner_product", "cosine"], "k": [1, 3]},
    },
    "credit_recovery": {"fixed": FIXED, "axes": {"seed": [3, 4], "method": METHODS}},
    "dynamics": {
        "fixed": {name: value for name, value in FIXED.items() if name != "fit_epochs"},
        "axes": {"seed": [3, 4], "train_rule": ["bp", "dfa"]},
    },
}


def run(settings: Settings, specs: dict[str, dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, bytes]]:
    """What was measured in every row, and the artifacts by key, of sweeps run together in a new data directory."""
    # A fork server that has loaded the experiments would not know those of this folder, for all tests of this process.
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, "start_fork_server", lambda **_: None)
        services = create_services(settings)
    services.scheduler.start()
    try:
        found = [
            services.control.submit(SpecText.of({"name": name, "experiment": name, **specs[name]}))[0] for name in specs
        ]
        deadline = time.monotonic() + 240
        for sweep in found:
            while not services.sweeps.get(sweep).state.finished:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            assert services.sweeps.get(sweep).state == "succeeded", services.failures.of(sweep)
        measured = {name for spec in specs for name in registry().experiment(spec).columns}
        dataset = Results(settings.data_dir / "results", "test").dataset()
        assert dataset is not None
        rows = dataset.to_table(columns=["cell", *sorted(measured)]).to_pylist()
    finally:
        services.scheduler.stop(0)
    artifacts = {key: services.store.read(key) for key in sorted(services.store.keys())}
    return sorted(rows, key=lambda row: (row["cell"], row.get("epoch") or 0, row.get("layer") or 0)), artifacts


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_same_specs_twice_are_the_same_bits_by_one_worker_or_two(tmp_path: Path) -> None:
    rows, artifacts = run(Settings(data_dir=tmp_path / "one", runner="ray", cpus=1), PROGRAM)
    rows_again, artifacts_again = run(Settings(data_dir=tmp_path / "two", runner="ray", cpus=2), PROGRAM)
    assert len(rows) == 40 + 10 + 20 + 10 * 2 + 4 * 3 * 3
    assert rows == rows_again
    assert artifacts == artifacts_again


@pytest.mark.timeout(300)
def test_a_part_of_a_grid_is_the_same_as_the_whole(tmp_path: Path) -> None:
    """Grouping cells differently moves a result by rounding alone, and an artifact not at all."""
    whole = {"linesearch": PROGRAM["linesearch"], "snapshot_time": PROGRAM["snapshot_time"]}
    part = {name: spec | {"axes": spec["axes"] | {"checkpoint_epoch": [2]}} for name, spec in whole.items()}
    part["linesearch"]["axes"] |= {"eta": [1e-2]}
    rows, artifacts = run(Settings(data_dir=tmp_path / "whole", runner="local"), whole)
    some_rows, some_artifacts = run(Settings(data_dir=tmp_path / "part", runner="local"), part)
    # A checkpoint that was asked for alone is the one that was made on the way to a later epoch.
    assert some_artifacts.items() <= artifacts.items()
    by_cell = {row.pop("cell"): row for row in rows}
    assert len(some_rows) == 15
    for row in some_rows:
        for name, value in by_cell[row.pop("cell")].items():
            assert row[name] == (value if value is None else pytest.approx(value, rel=1e-6, abs=1e-7)), name
