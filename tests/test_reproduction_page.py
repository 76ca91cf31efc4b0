"""docs/reproduction.md: every table follows from its statement and the stored rows, and every file it names exists."""

from __future__ import annotations

import re

import pytest
import yaml
from tests.reproduction_page import FOLDER, PAGE, STATEMENT, written

from creditgrid.core.experiments.registry import registry
from creditgrid.core.spec.model import SweepSpec


def test_every_table_follows_from_its_statement() -> None:
    page = PAGE.read_text()

    assert len(STATEMENT.findall(page)) >= 8
    assert written(page) == page


def test_every_file_that_the_page_names_exists() -> None:
    named = re.findall(r"\]\((?!https?:|#)([^)]+)\)", PAGE.read_text())

    assert any(name.endswith(".yaml") for name in named)
    assert any(name.endswith((".png", ".svg")) for name in named)
    assert [name for name in named if not (FOLDER / name).exists()] == []


@pytest.mark.parametrize("path", sorted((FOLDER / "reproduction").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_spec_is_of_an_experiment_and_its_parameters(path: object) -> None:
    document = yaml.safe_load(path.read_text())  # type: ignore[attr-defined]
    spec = SweepSpec.model_validate(document)
    known = registry().experiment(spec.experiment).params.model_fields

    assert (spec.fixed.keys() | spec.axes.keys()) <= known.keys()
