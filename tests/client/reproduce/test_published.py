"""The published figures are those that were published, and each is found in the rows of an experiment that exists."""

from __future__ import annotations

import pytest

from creditgrid.client.reproduce.published import EXPERIMENTS, PUBLISHED, Claim, PublishedColumn
from creditgrid.core.experiments.registry import registry

LINE_SEARCH = """
| method | gamma | norm: best eta | norm: dL_same | norm: dL_held | raw: dL_same |
| --- | --- | --- | --- | --- | --- |
| dfa | 0.01 | 1e-2 | −0.003 | +0.004 | |
| scalar_cb | 0.12 | 3e-3 | −0.025 | +0.027 | |
| vec | 0.38 | 3e-3 | −0.135 | +0.045 | −0.005 |
| oracle_bp | 1.00 | 1e-2 | −0.406 | +0.094 | −0.003 |
"""
EXPLOITABILITY = """
| method | gamma | rho | inner_product | shift 0.1 | shift 0.3 | shift 1.0 |
| --- | --- | --- | --- | --- | --- | --- |
| dfa | 0.009 | −0.023 | −0.0001 | −0.0003 | +0.0004 | +0.001 |
| scalar_cb | 0.122 | 0.090 | +0.042 | | | |
| vec | 0.378 | 0.411 | +0.057 | +0.002 | +0.009 | +0.048 |
| oracle_bp | 1.000 | 0.998 | +0.011 | +0.0002 | +0.001 | +0.005 |
"""


def table(markdown: str) -> dict[str, dict[str, float | None]]:
    """Each column of a Markdown table, by its heading: a figure, or None, by method."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown.strip().splitlines()]
    heading, _, *rows = lines
    return {
        name: {row[0]: float(row[i].replace("−", "-")) if row[i] else None for row in rows}
        for i, name in enumerate(heading)
        if i
    }


def figures(experiment: str, column: str, **where: object) -> dict[str, float | None]:
    found = [
        published
        for published in PUBLISHED
        if (published.experiment, published.column, published.where) == (experiment, column, where)
    ]
    assert len(found) == 1, found
    return dict(found[0].figures)


def test_the_line_search() -> None:
    said = table(LINE_SEARCH)
    norm = {"update_range": "all", "norm_mode": "norm"}
    assert figures("linesearch", "eta", **norm) == said["norm: best eta"]
    assert figures("linesearch", "delta_loss_same", **norm) == said["norm: dL_same"]
    assert figures("linesearch", "delta_loss_held", **norm) == said["norm: dL_held"]
    assert figures("linesearch", "delta_loss_same", update_range="all", norm_mode="raw") == said["raw: dL_same"]
    assert figures("credit_recovery", "gamma_mean", layer=0) == said["gamma"]


def test_exploitability() -> None:
    said = table(EXPLOITABILITY)
    rule = {"rule": "inner_product", "kappa": None}
    assert figures("exploitability", "gamma", **rule) == said["gamma"]
    assert figures("exploitability", "rho", **rule) == said["rho"]
    assert figures("exploitability", "delta_loss", **rule) == said["inner_product"]
    for kappa in (0.1, 0.3, 1.0):
        assert figures("exploitability", "delta_loss", rule="target_shift", kappa=kappa) == said[f"shift {kappa}"]
    assert figures("credit_recovery", "rho_mean", layer=0) == said["rho"]


def test_the_accuracy() -> None:
    assert figures("snapshot_time", "test_accuracy") == {"oracle_bp": 0.619}


def test_nothing_beside() -> None:
    assert len(PUBLISHED) == 4 + 6 + 2 + 1
    assert EXPERIMENTS == ("linesearch", "exploitability", "credit_recovery", "snapshot_time")
    claimed = {claim: [column.column for column in PUBLISHED if column.claim is claim] for claim in Claim}
    assert claimed[Claim.STEP_SIZE] == ["eta"]
    assert claimed[Claim.NONE] == ["test_accuracy"]
    assert [column.experiment for column in PUBLISHED if column.at_best_eta] == ["linesearch"] * 4


@pytest.mark.parametrize("column", PUBLISHED, ids=lambda column: f"{column.experiment}-{column.title}")
def test_the_experiment_has_the_columns(column: PublishedColumn) -> None:
    experiment = registry().experiments[column.experiment]
    parameters = experiment.params.model_fields
    columns = {**parameters, **experiment.columns}
    assert {column.column, *column.where} <= columns.keys()
    assert {"seed", "method", "checkpoint_epoch", "train_epochs"} <= parameters.keys()
