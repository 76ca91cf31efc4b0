"""Experiments over HTTP."""

from __future__ import annotations

import dataclasses

import pytest
from service_fakes import AppClient

from creditgrid.core.experiment import Axis, Chart
from creditgrid.core.experiments import registry as registry_module
from creditgrid.core.experiments.registry import registry
from creditgrid.core.rows import columns
from creditgrid.core.wire import ExperimentView, Page


def test_experiments(client: AppClient) -> None:
    page = Page[ExperimentView].model_validate_json(client.get("/v1/experiments").text)
    view = {view.name: view for view in page.items}["linesearch"]
    assert view.parameters["properties"]["eta"]["type"] == "number"
    assert view.columns["delta_loss_same"].type == "float64"
    assert {"train", "linesearch"} <= set(view.kinds)
    assert view.problem is None
    assert page.next is None


def test_experiments_show_their_charts(client: AppClient, monkeypatch: pytest.MonkeyPatch) -> None:
    known = registry()
    chart = Chart(
        name="change",
        title="Change",
        mark="line",
        x=Axis(("eta",), "step size", "log"),
        measures=(Axis(("delta_loss_same", "delta_loss_held"), "change / nats", "symlog"),),
        series=("method",),
    )
    drawn = dataclasses.replace(known.experiments["linesearch"], charts=(chart,))
    found = registry_module.Registry({"linesearch": drawn}, known.kinds, {})
    monkeypatch.setattr("creditgrid.service.api.routes.experiments.registry", lambda: found)
    view = ExperimentView.model_validate_json(client.get("/v1/experiments/linesearch").text)
    assert [dataclasses.asdict(chart) for chart in view.charts] == [
        {
            "name": "change",
            "title": "Change",
            "mark": "line",
            "x": {"columns": ["eta"], "title": "step size", "scale": "log"},
            "measures": [
                {"columns": ["delta_loss_same", "delta_loss_held"], "title": "change / nats", "scale": "symlog"}
            ],
            "series": ["method"],
        }
    ]


def test_charts_show_columns_that_there_are() -> None:
    for experiment in registry().experiments.values():
        assert len({chart.name for chart in experiment.charts}) == len(experiment.charts)
        for chart in experiment.charts:
            shown = {*chart.x.columns, *chart.series, *(name for axis in chart.measures for name in axis.columns)}
            assert shown <= set(columns(experiment)), (experiment.name, chart.name)


def test_one_experiment(client: AppClient) -> None:
    by_name = {view["name"]: view for view in client.get("/v1/experiments").json()["items"]}
    assert client.get("/v1/experiments/linesearch").json() == by_name["linesearch"]
    missing = client.get("/v1/experiments/nope")
    assert missing.status_code == 404
    assert "linesearch" in missing.json()["detail"]


def test_broken_experiments_say_why(client: AppClient, monkeypatch: pytest.MonkeyPatch) -> None:
    known = registry()
    broken = registry_module.Registry(known.experiments, known.kinds, {"aaa": "package x raised ImportError"})
    monkeypatch.setattr("creditgrid.service.api.routes.experiments.registry", lambda: broken)
    first, *others = client.get("/v1/experiments").json()["items"]
    assert (first["name"], first["problem"]) == ("aaa", "package x raised ImportError")
    assert client.get("/v1/experiments/aaa").json() == first
    assert others
