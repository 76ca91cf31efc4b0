"""Plans, experiments, artifacts and health over HTTP."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from safetensors.numpy import load
from service_fakes import AppClient, Fakes

from creditgrid.core.experiment import Axis, Chart
from creditgrid.core.experiments import registry as registry_module
from creditgrid.core.experiments.registry import registry
from creditgrid.core.rows import columns
from creditgrid.core.wire import ExperimentView, Page, PlanView

SPEC = {"name": "n", "experiment": "linesearch"}
KEY = "0123456789abcdef" * 4


# -- plans --


def test_plan(client: AppClient, fakes: Fakes) -> None:
    for options in (
        {"json": SPEC},
        {"content": b"{name: n, experiment: linesearch}", "headers": {"Content-Type": "text/yaml"}},
    ):
        response = client.post("/v1/plans", **options)
        assert response.status_code == 200
        assert PlanView.model_validate_json(response.text).cells.new == 2
    assert fakes.ledger.sweeps == {}


# -- experiments --


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


# -- artifacts --


@pytest.fixture
def arrays(fakes: Fakes) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {
        "embed.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
        "y": np.array([1, 2], np.int64),
    }
    fakes.store.save(KEY, {"kind": "train"}, arrays, {"host": "h"})
    return arrays


def test_artifact(client: AppClient, arrays: dict[str, np.ndarray]) -> None:
    response = client.get(f"/v1/artifacts/{KEY}")
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/vnd.safetensors"
    assert response.headers["etag"] == f'"{KEY}"'
    digest = base64.b64encode(hashlib.sha256(response.content).digest()).decode()
    assert response.headers["repr-digest"] == f"sha-256=:{digest}:"
    tensors = load(response.content)
    assert sorted(tensors) == sorted(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(tensors[name], array)


@pytest.mark.usefixtures("arrays")
def test_artifact_unchanged(client: AppClient) -> None:
    for tags in (f'"{KEY}"', f'"other", W/"{KEY}"'):
        response = client.get(f"/v1/artifacts/{KEY}", headers={"If-None-Match": tags})
        assert (response.status_code, response.content) == (304, b"")
    assert client.get(f"/v1/artifacts/{KEY}", headers={"If-None-Match": '"other"'}).status_code == 200


@pytest.mark.usefixtures("arrays")
def test_artifact_in_parts(client: AppClient) -> None:
    whole = client.get(f"/v1/artifacts/{KEY}").content
    part = client.get(f"/v1/artifacts/{KEY}", headers={"Range": "bytes=4-9"})
    assert (part.status_code, part.content) == (206, whole[4:10])


@pytest.mark.usefixtures("arrays")
def test_record(client: AppClient) -> None:
    record = client.get(f"/v1/artifacts/{KEY}/record").json()
    assert (record["key"], record["payload"], record["provenance"]) == (KEY, {"kind": "train"}, {"host": "h"})
    assert record["tensors"]["embed.weight"] == {"shape": [2, 3], "dtype": "float32"}


@pytest.mark.parametrize(
    "key", ["f" * 64, "short", "..", "%2e%2e%2f%2e%2e%2fetc%2fpasswd", "F" * 64, KEY + "0", "a" * 63 + "/"]
)
def test_artifacts_that_are_not_there(client: AppClient, key: str) -> None:
    for suffix in ("", "/record"):
        response = client.get(f"/v1/artifacts/{key}{suffix}")
        assert response.status_code == 404
        assert response.headers["content-type"] == "application/problem+json"


# -- health --


def test_health(client: AppClient, fakes: Fakes) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json() == {"status": "ready"}
    assert fakes.scheduler.running


def metrics(client: AppClient) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    text = client.get("/metrics").text
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_metrics(client: AppClient, fakes: Fakes, sweep: str) -> None:
    client.post("/v1/query", json={"sql": "SELECT 1"})
    client.post("/v1/query", json={"sql": "SELEC"})
    found = metrics(client)
    assert found["creditgrid_open_sweep_cells", (("state", "running"),)] == 2
    assert found["creditgrid_open_sweep_cells", (("state", "succeeded"),)] == 1
    assert found["creditgrid_open_sweeps", (("state", "running"),)] == 1
    assert found["creditgrid_calls_running", ()] == 1
    assert found["creditgrid_runner_cpus", ()] == 2
    assert found["creditgrid_ready", ()] == 1
    assert found["creditgrid_query_seconds_count", (("outcome", "answered"),)] == 1
    assert found["creditgrid_query_seconds_count", (("outcome", "refused"),)] == 1
    assert any(name == "creditgrid_build_info" for name, _ in found)
    fakes.ledger.finish(sweep)
    fakes.scheduler.trouble = "away"
    found = metrics(client)
    assert found["creditgrid_open_sweep_cells", (("state", "running"),)] == 0
    assert found["creditgrid_ready", ()] == 0


def test_metrics_do_not_grow_with_what_is_asked_for(client: AppClient, sweep: str) -> None:
    for index in range(20):
        client.get(f"/v1/sweeps/nope-{index}")
        client.get(f"/v1/nowhere/{index}")
        client.request(f"METHOD{index}", "/v1/sweeps")
    counts = {
        labels: value for (name, labels), value in metrics(client).items() if name.endswith("request_seconds_count")
    }
    by_route = {
        (dict(labels)["method"], dict(labels)["route"], dict(labels)["status"]): n for labels, n in counts.items()
    }
    assert by_route["GET", "/v1/sweeps/{sweep}", "404"] == 20
    assert by_route["GET", "none", "404"] == 20
    assert by_route["POST", "/v1/sweeps", "201"] == 1
    assert sum(n for (method, _, status), n in by_route.items() if (method, status) == ("other", "405")) == 20
    assert not any("nope" in route for _, route, _ in by_route)


def test_openapi_names_what_it_takes_and_gives(client: AppClient) -> None:
    document = client.get("/openapi.json").json()
    submit = document["paths"]["/v1/sweeps"]["post"]
    assert set(submit["requestBody"]["content"]) == {"application/json", "application/yaml"}
    results = document["paths"]["/v1/sweeps/{sweep}/results"]["get"]
    assert "text/csv" in results["responses"]["200"]["content"]
    assert "application/problem+json" in results["responses"]["default"]["content"]
    assert "HTTPBearer" in document["components"]["securitySchemes"]
    assert "422" not in submit["responses"] or "HTTPValidationError" not in json.dumps(submit["responses"])
