"""Metrics in Prometheus' format."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families
from service_fakes import AppClient, Fakes


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
    assert found["creditgrid_logs_followed", ()] == 0
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
