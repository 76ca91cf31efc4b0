"""Submissions that are being planned, over HTTP."""

from __future__ import annotations

from datetime import UTC, datetime

from service_fakes import AppClient, Fakes, problem_in

from creditgrid.core.wire import SubmissionView


def test_submissions_are_listed(client: AppClient, fakes: Fakes) -> None:
    assert client.get("/v1/submissions").json() == {"items": [], "next": None}
    now = datetime.now(UTC)
    view = SubmissionView(id="s1", name="n", owner=None, cells=1000, most_cells=5000, created_at=now)
    fakes.plans.submissions.append(view)
    assert SubmissionView.model_validate(client.get("/v1/submissions").json()["items"][0]) == view


def test_a_submission_is_stopped(client: AppClient, fakes: Fakes) -> None:
    view = SubmissionView(id="s1", name="n", owner=None, cells=0, most_cells=None, created_at=datetime.now(UTC))
    fakes.plans.submissions.append(view)
    response = client.request("DELETE", "/v1/submissions/s1")
    assert (response.status_code, response.content) == (204, b"")
    assert fakes.plans.submissions == []
    problem_in(client.request("DELETE", "/v1/submissions/s1"), 404)
