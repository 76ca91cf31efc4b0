"""Curves over epochs: a faint line a run, the mean of those that differ in seeds alone, and what is left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from charting import MAGIC, chart, epochs, grid, serve, spec, view

from creditgrid.client.client import Client
from creditgrid.client.errors import BadSetting
from creditgrid.client.plots import curves as module
from creditgrid.client.plots.charts import write
from creditgrid.client.plots.curves import kinds, page


def rows(*parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All rows with all columns, as in the table."""
    together = [row for part in parts for row in part]
    names = dict.fromkeys(name for row in together for name in row)
    return [{name: row.get(name) for name in names} for row in together]


def drawn(*parts: list[dict[str, Any]]) -> dict[str, Any]:
    made = page(rows(*parts))
    assert made is not None
    datasets: dict[str, Any] = spec(made)["datasets"]
    return datasets


def test_a_mean_is_over_runs_that_differ_in_seeds_alone() -> None:
    both = epochs([1, 2], rule="bp", checkpoint_seed=9), epochs([1, 2, 5], rule="dfa", checkpoint_seed=8)
    (found,) = kinds(rows(*both))
    assert (found.kind, found.metrics, found.series.labels) == ("train", ["train_loss"], ["bp", "dfa"])
    datasets = drawn(*both)
    assert len(datasets["train/train_loss"]) == 5 * 4
    means = {(point["series"], point["epoch"]): (point["n"], point["y"]) for point in datasets["train/train_loss/mean"]}
    assert means["bp", 1] == (2, pytest.approx((1 / 2 + 1 / 3) / 2))
    assert means["dfa", 4] == (3, pytest.approx((1 / 5 + 1 / 6 + 1 / 9) / 3))


def test_each_kind_has_its_own_panels() -> None:
    train = epochs(metrics=["train_loss", "test_accuracy", "step_size"])
    fit = epochs(kind="fit", metrics=["fit_loss"], checkpoint_epoch=3)
    other = epochs(kind="plugin", metrics=["distance"], label=7)
    assert drawn(train, fit, other).keys() == {
        f"{panel}{end}"
        for panel in ("train/train_loss", "train/test_accuracy", "fit/fit_loss", "plugin/distance")
        for end in ("", "/mean")
    }


def test_nothing_to_draw() -> None:
    assert page([]) is None
    assert page(rows(epochs(metrics=[]))) is None


def test_parameters_that_others_determine_are_not_in_the_legend() -> None:
    parts = [epochs([1, 2], width=width, twice=2 * width, rule="bp") for width in (8, 16)]
    (found,) = kinds(rows(*parts))
    assert found.series.columns == ["width"]


def test_many_runs_and_points_are_thinned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "MOST_RUNS", 3)
    monkeypatch.setattr(module, "MOST_SERIES", 2)
    monkeypatch.setattr(module, "MOST_POINTS", 10)
    parts = rows(*(epochs([1], width=width, last=100) for width in (8, 16, 32, 64)))
    (found,) = kinds(parts)
    assert found.notes == ["3 of 4 runs are shown", "runs differ in width and have one colour"]
    made = page(parts)
    assert made is not None
    datasets = spec(made)["datasets"]
    assert (len(datasets["train/train_loss"]), len(datasets["train/train_loss/mean"])) == (30, 10)
    assert write(made, tmp_path / "c.svg", "svg").stat().st_size > 1000


def test_values_over_decades_have_a_log_axis() -> None:
    wide = [row | {"train_loss": 10.0 ** -row["epoch"]} for row in epochs()]
    made = page(rows(wide))
    assert made is not None
    assert '"type": "log"' in made.to_json()


def test_plots_of_a_sweep_have_its_curves(tmp_path: Path) -> None:
    some = rows(epochs([1, 2], rule="bp"), epochs([1, 2], rule="dfa"))
    sweep = Client("http://service", transport=serve(grid(), view(chart()), some)).sweep("s1")
    assert [path.name for path in sweep.plot(tmp_path, "svg")] == ["s1-change.svg", "s1-curves.svg"]
    (only,) = sweep.plot(tmp_path, name="curves", fix={"rule": "bp"})
    assert only.read_bytes().startswith(MAGIC["png"])
    with pytest.raises(BadSetting, match="no curves to draw yet"):
        sweep.charts("curves", fix={"rule": "other"})
    early = Client("http://service", transport=serve([], view(chart()), some)).sweep("s1")
    assert list(early.charts()) == ["curves"]  # no cell has ended
    with pytest.raises(BadSetting, match="no rows to draw yet"):
        Client("http://service", transport=serve([], view(chart()))).sweep("s1").charts()
