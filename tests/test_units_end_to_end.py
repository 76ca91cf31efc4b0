"""A dataset, a rule and a measurement of a file from end to end: a real service, HTTP and Ray."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from creditgrid.client import Client, InvalidRequest
from creditgrid.client.local_service import LocalService
from creditgrid.client.local_task import compute_task
from creditgrid.core.states import State

pytestmark = pytest.mark.slow
MINE = '''import numpy as np
from creditgrid.core.experiment import Column
from creditgrid.core.units.decorators import dataset, measurement, rule
from pydantic import Field


@dataset(fingerprint="bars 1", image_shape=(1, 8, 8), num_train=800, num_test=120, num_classes=4)
def bars():
    """Bars."""
    draws = np.random.default_rng(0)
    y = np.arange(920) % 4
    x = draws.integers(0, 100, size=(920, 1, 8, 8)).astype(np.uint8)
    x[np.arange(920), 0, 2 * y] += 100
    return {"x_train": x[:800], "y_train": y[:800], "x_test": x[800:], "y_test": y[800:]}


@measurement(columns={"update_size": "Length.", "seen": Column("string", "What is seen.")}, after_step=True)
def update_size(measured):
    """The length of an update."""
    return {"update_size": sum(p.double().square().sum() for p in measured.update.values()) ** 0.5, "seen": "a step"}


@rule
def pulled(branch, credit, pull: float = Field(0.1, ge=0, description="Pull, dimensionless.")):
    """A pull to 0."""
    return (credit + pull * branch) / branch.shape[-2]
'''
SPEC: dict[str, Any] = {
    "name": "mine",
    "experiment": "exploitability",
    "fixed": {"dataset": "bars", "num_blocks": 2, "d_hidden": 16, "batch_size": 32, "train_epochs": 1},
    "axes": {"method": ["oracle_bp"], "rule": ["inner_product", "pulled"], "k": [1, 3]},
    "measurements": ["update_size", "effective_rank"],
}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    data = tmp_path_factory.mktemp("service")
    with LocalService("--allow-code", "--cpus", "2", "--data-dir", str(data)) as service, Client(service.url) as found:
        yield found


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("code") / "mine.py"
    path.write_text(MINE)
    return path


def test_they_are_chosen_stored_extended_and_computed_again(client: Client, file: Path, tmp_path: Path) -> None:
    sweep = client.submit(SPEC, code=file).wait(timeout=200)
    rows = sweep.results().table.to_pylist()
    assert [(row["rule"], row["k"], row["pull"], row["dataset"]) for row in rows] == [
        ("inner_product", 1, None, "bars"),
        ("inner_product", 3, None, "bars"),
        ("pulled", 1, 0.1, "bars"),
        ("pulled", 3, 0.1, "bars"),
    ]
    assert all(row["update_size"] > 0 and row["effective_rank"] >= 1 and row["seen"] == "a step" for row in rows)
    assert {"update_size", "effective_rank"} <= set(sweep.summary().columns)
    assert client.query("SELECT count(update_size) AS n FROM results").to_pylist() == [{"n": 4}]
    sweep.extend(axes={"k": [4]})
    assert sweep.wait(timeout=100).view.counts == {State.SUCCEEDED: 6}
    assert client.submit(SPEC, code=file).state == State.CACHED
    plain = client.submit({**SPEC, "measurements": []}, code=file).wait(timeout=100)
    assert "update_size" not in plain.results().table.column_names
    assert plain.view.counts == {State.SUCCEEDED: 4}  # cells without the columns are other cells
    data = next(iter(sweep.cells())).parents["data"]
    run = compute_task(client, data, tmp_path / "run", allow_code=True)
    assert run.tensors is not None
    assert run.tensors["x_train"]["shape"] == [800, 1, 8, 8]


def refused(client: Client, file: Path, old: str, new: str, tmp_path: Path, **spec: Any) -> str:
    path = tmp_path / "mine.py"
    path.write_text(file.read_text().replace(old, new))
    with pytest.raises(InvalidRequest) as caught:
        client.submit({**SPEC, **spec}, code=path)
    return str(caught.value)


def test_what_cannot_be_used_is_refused(client: Client, file: Path, tmp_path: Path) -> None:
    client.submit(SPEC, code=file).wait(timeout=200)

    def said(old: str = "", new: str = "", **spec: Any) -> str:
        return refused(client, file, old, new, tmp_path, **spec)

    dynamics = {"experiment": "dynamics", "axes": {"seed": [1]}}
    assert "/measurements/0: update_size measures the update of a local step" in said(**dynamics)
    assert "did you mean 'update_size'?" in said(measurements=["update_siz"])
    assert "did you mean 'bars'?" in said(fixed={**SPEC["fixed"], "dataset": "barz"})
    assert "mine.py:7: bars: x_test is uint8 (120, 1, 8, 8)" in said("num_test=120", "num_test=121")
    changed = MINE.replace('Column("string", "What is seen.")', '"A number."').replace(
        '"seen": "a step"', '"seen": 1.0'
    )
    (tmp_path / "other.py").write_text(changed)
    with pytest.raises(InvalidRequest, match="the column 'seen' is double here and string in the stored rows"):
        client.submit(SPEC, code=tmp_path / "other.py")
