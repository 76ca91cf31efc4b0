"""Plans over HTTP."""

from __future__ import annotations

from service_fakes import AppClient, Fakes

from creditgrid.core.wire import PlanView

SPEC = {"name": "n", "experiment": "linesearch"}


def test_plan(client: AppClient, fakes: Fakes) -> None:
    for options in (
        {"json": SPEC},
        {"content": b"{name: n, experiment: linesearch}", "headers": {"Content-Type": "text/yaml"}},
    ):
        response = client.post("/v1/plans", **options)
        assert response.status_code == 200
        assert PlanView.model_validate_json(response.text).cells.new == 2
    assert fakes.ledger.sweeps == {}
