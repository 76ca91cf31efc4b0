"""The specs and settings of the published runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from creditgrid.client.errors import BadSetting
from creditgrid.client.reproduce.published import EXPERIMENTS
from creditgrid.client.reproduce.runs import Settings, example, specs
from creditgrid.core.experiments.registry import registry
from creditgrid.core.spec.model import parse
from creditgrid.core.spec.validation import validate


def cells(experiment: str, document: dict[str, Any]) -> list[Any]:
    found = registry().experiments[experiment]
    grid = validate(parse(document), found, kinds=registry().kinds_of(found))
    return list(grid.cells())


@pytest.mark.parametrize("experiment", EXPERIMENTS)
@pytest.mark.parametrize(
    "settings",
    [Settings(), Settings(1), Settings(3, seeds=2), Settings(7, 2), Settings(fit_epochs=1, dataset="digits")],
    ids=str,
)
def test_specs_are_valid(experiment: str, settings: Settings) -> None:
    counts = {"linesearch": 56, "exploitability": 16, "credit_recovery": 4, "snapshot_time": 9}
    found = cells(experiment, specs(settings)[experiment])
    assert {cell.seed for cell in found} == set(settings.seed_list)
    assert {cell.train_epochs for cell in found} == {settings.epochs}
    assert {cell.dataset for cell in found} == {settings.dataset}
    if experiment != "snapshot_time":
        assert len(found) == counts[experiment] * settings.seeds
    elif settings.epochs == 100:
        assert len(found) == counts[experiment]
        assert {cell.checkpoint_epoch for cell in found} == {5, 20, 100}
    for cell in found:
        assert cell.fit_epochs == settings.scaled_fit_epochs.get(cell.method)


def test_the_published_settings_are_the_shipped_specs() -> None:
    for experiment, document in specs(Settings()).items():
        shipped = example(experiment)
        assert shipped["experiment"] == experiment
        assert cells(experiment, document) == cells(experiment, shipped)


@pytest.mark.parametrize(
    ("epochs", "checkpoints", "vec", "scalar_cb"),
    [
        (1, [1], 1, 1),
        (2, [1, 2], 1, 2),
        (10, [1, 2, 10], 6, 10),
        (50, [2, 10, 50], 30, 50),
        (100, [5, 20, 100], 60, 100),
    ],
)
def test_epochs_are_scaled_in_proportion(epochs: int, checkpoints: list[int], vec: int, scalar_cb: int) -> None:
    settings = Settings(epochs)
    assert specs(settings)["snapshot_time"]["axes"]["checkpoint_epoch"] == checkpoints
    assert settings.scaled_fit_epochs == {"vec": vec, "scalar_cb": scalar_cb}
    assert settings.scaled_down is (epochs < 100)


def test_a_folder_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for given_, sent in (
        ("./cifar", str(tmp_path / "cifar")),
        ("data/cifar", str(tmp_path / "data" / "cifar")),
        ("/data/cifar", "/data/cifar"),
        ("parquet:/data/cifar", "parquet:/data/cifar"),
        ("cifar100", "cifar100"),
    ):
        assert specs(Settings(dataset=given_))["linesearch"]["fixed"]["dataset"] == sent


def test_only_some_experiments_in_their_order() -> None:
    assert list(specs(Settings(only=("credit_recovery", "linesearch")))) == ["linesearch", "credit_recovery"]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"epochs": 0}, "--epochs is a whole number of at least 1; got 0"),
        ({"fit_epochs": -1}, "--fit-epochs"),
        ({"seeds": 0}, "--seeds is a whole number"),
        ({"seeds": 10**9}, "--seeds is at most 1,000"),
        ({"only": ("linesearch", "dynamics")}, "linesearch, exploitability, credit_recovery, snapshot_time; got 'dyn"),
        ({"dataset": ""}, "--dataset is empty"),
    ],
)
def test_bad_settings(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(BadSetting, match=said):
        Settings(**wrong)


def test_the_command_that_asks_for_the_same() -> None:
    assert Settings().command == "creditgrid reproduce"
    settings = Settings(3, 2, 4, "./my data", ("linesearch", "snapshot_time"))
    assert settings.command == (
        "creditgrid reproduce --epochs 3 --fit-epochs 2 --seeds 4 --dataset './my data' "
        "--only linesearch --only snapshot_time"
    )
