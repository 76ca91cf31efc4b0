"""The specs that come with the client are valid, and of the size in their comments."""

from __future__ import annotations

import ast
from importlib import resources

import pytest
import yaml

from creditgrid.client.spec import load_spec
from creditgrid.core.experiments.registry import registry
from creditgrid.core.spec.model import parse
from creditgrid.core.spec.text import parse_text
from creditgrid.core.spec.validation import validate

FOLDER = resources.files("creditgrid.client").joinpath("examples")


@pytest.mark.parametrize(
    ("name", "cells", "seeds"),
    [
        ("linesearch-digits.yaml", 336, 2),
        ("linesearch-cifar10.yaml", 504, 3),
        ("recovery-networks-cifar10.yaml", 18, 3),
        ("reproduce-linesearch.yaml", 56, 1),
        ("reproduce-exploitability.yaml", 16, 1),
        ("reproduce-credit_recovery.yaml", 4, 1),
        ("reproduce-snapshot_time.yaml", 9, 1),
    ],
)
def test_examples_are_valid(name: str, cells: int, seeds: int) -> None:
    document = load_spec(str(FOLDER / name))
    experiment = registry().experiments[document["experiment"]]
    grid = validate(parse(document), experiment, kinds=registry().kinds_of(experiment))
    found = list(grid.cells())
    assert len(found) == cells
    assert len({cell.seed for cell in found}) == seeds  # type: ignore[attr-defined]
    if document["experiment"] == "linesearch":
        assert max(cell.eta for cell in found) == 1e-2  # type: ignore[attr-defined]


def test_every_spec_is_tried() -> None:
    (tried,) = (mark.args[1] for mark in test_examples_are_valid.pytestmark if mark.name == "parametrize")
    assert {name for name, _, _ in tried} == {file.name for file in FOLDER.iterdir() if file.name.endswith(".yaml")}


def test_the_digits_have_enough_batches_for_the_probe() -> None:
    fixed = load_spec(str(FOLDER / "linesearch-digits.yaml"))["fixed"]
    assert 1437 // fixed["batch_size"] >= 10


def test_the_demo_uses_only_the_client() -> None:
    tree = ast.parse((FOLDER / "demo.py").read_text())
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name for name in imported if name and name.startswith("creditgrid")} <= {
        "creditgrid.client",
        "creditgrid.client.local_service",
        "creditgrid.client.display.tables",
    }


@pytest.mark.parametrize("name", sorted(file.name for file in FOLDER.iterdir() if file.name.endswith(".yaml")))
def test_examples_mean_the_same_to_any_yaml_loader(name: str) -> None:
    file = FOLDER / name
    assert yaml.safe_load(file.read_text()) == parse_text(file.read_bytes())
