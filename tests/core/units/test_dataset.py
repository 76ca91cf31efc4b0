"""Datasets that are units: how they are declared, known to a plan, and loaded."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from creditgrid.core.datasets import resolve
from creditgrid.core.errors import DatasetError, PluginError, SpecError
from creditgrid.core.experiments.registry import registry_with
from creditgrid.core.experiments.stage_runs import run_data
from creditgrid.core.experiments.stages import CODE, code_task, data_task
from creditgrid.core.naming import name_cells, resolve_datasets
from creditgrid.core.science.loading import load_unit
from creditgrid.core.spec.model import parse
from creditgrid.core.spec.validation import validate
from creditgrid.core.units.brought import load
from creditgrid.core.units.code import sha256_of, to_arrays
from creditgrid.core.units.dataset import Dataset, reference
from creditgrid.core.units.known import installed

TEXT = b"""
import numpy as np
from creditgrid.core.units.decorators import dataset

@dataset(fingerprint="bars 1", image_shape=(1, 8, 8), num_train=400, num_test=60, num_classes=4)
def bars():
    "Bars."
    draws = np.random.default_rng(0)
    x = draws.integers(0, 99, size=(460, 1, 8, 8)).astype(np.uint8)
    y = np.arange(460) % 4
    return {"x_train": x[:400], "y_train": y[:400], "x_test": x[400:], "y_test": y[400:]}
"""
FILES = {"bars.py": TEXT}
SHA = sha256_of(FILES)


def bars() -> type[Dataset]:
    (unit,) = load(FILES)
    assert issubclass(unit, Dataset)
    return unit


def test_a_reference_identifies_the_content_and_the_code() -> None:
    known = reference(bars(), None)
    assert (known.name, known.num_train, known.num_test, known.num_classes) == ("bars", 400, 60, 4)
    assert known.image_shape == (1, 8, 8)
    assert len(known.fingerprint) == 64
    other = type("other", (bars(),), {"name": "bars", "fingerprint": "bars 2", "__module__": __name__})
    assert reference(other, None).fingerprint != known.fingerprint
    assert reference(bars(), SHA) != known
    assert data_task(reference(bars(), SHA)).parents == {"code": code_task(SHA).key}
    assert data_task(known).parents == {}
    assert resolve("digits").code is None


def test_the_arrays_are_loaded_with_statistics_as_of_any_set() -> None:
    arrays = load_unit(bars())
    assert arrays["num_classes"] == 4
    pixels = arrays["x_train"] / 255
    np.testing.assert_allclose(arrays["mean"], [pixels.mean()], rtol=1e-6)
    np.testing.assert_allclose(arrays["std"], [pixels.std()], rtol=1e-6)


def test_arrays_that_are_not_as_declared_are_refused() -> None:
    wrong = type("wrong", (bars(),), {"name": "wrong", "num_test": 61, "__module__": __name__})
    with pytest.raises(DatasetError, match=r"wrong: x_test is uint8 \(60, 1, 8, 8\), and by the declaration"):
        load_unit(wrong)


def test_a_worker_loads_a_brought_dataset_from_its_code() -> None:
    task = data_task(reference(bars(), SHA))
    (output,) = run_data([task], {CODE.task({"sha256": SHA}).key: to_arrays(FILES)}, torch.device("cpu"))
    assert output.arrays is not None
    np.testing.assert_array_equal(output.arrays["y_test"], np.arange(400, 460) % 4)


def test_a_spec_names_it_and_its_data_task_needs_the_code() -> None:
    found = registry_with(installed().with_brought([bars()], SHA))
    experiment = found.experiment("linesearch")
    spec = {
        "name": "bars",
        "experiment": "linesearch",
        "fixed": {"dataset": "bars", "method": "oracle_bp", "batch_size": 32},
        "axes": {"eta": [0.1]},
    }
    grid = validate(parse(spec), experiment, found.kinds)
    datasets = resolve_datasets(grid, resolve)
    (chunk,) = name_cells(grid, found.kinds_of(experiment), datasets)
    stages = {stage.kind: stage for stage in chunk.stages}
    assert chunk.stages[0].kind == "code"
    assert stages["data"].parents == [0]
    assert stages["code"].key == code_task(SHA).key
    spec["fixed"] = {"dataset": "barz", "method": "oracle_bp"}
    with pytest.raises(SpecError, match=r"unknown dataset 'barz'.*or did you mean 'bars'\?"):
        resolve_datasets(validate(parse(spec), experiment, found.kinds), resolve)


@pytest.mark.parametrize(
    ("declared", "said"),
    [
        ({"name": "cifar10"}, "the dataset 'cifar10' exists already"),
        ({"fingerprint": ""}, "needs a fingerprint"),
        ({"image_shape": (8, 8)}, "needs an image_shape"),
        ({"image_shape": (1, 8, 0)}, "needs an image_shape"),
        ({"num_train": 0}, "needs num_train"),
        ({"num_classes": 1}, "needs num_classes"),
        ({"num_test": 2.0}, "needs num_test"),
    ],
)
def test_a_wrong_declaration_is_refused(declared: dict, said: str) -> None:
    odd = type("odd", (bars(),), {"name": "odd", **declared, "__module__": __name__})
    with pytest.raises(PluginError, match=said):
        installed().with_brought([odd], SHA)
