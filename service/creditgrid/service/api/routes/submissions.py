"""Submissions that are being planned: their sweeps are not visible yet."""

from __future__ import annotations

from fastapi import APIRouter

from creditgrid.core.wire import Page, Role, SubmissionView
from creditgrid.service.api.auth import PROTECTED
from creditgrid.service.api.dependencies import ActorDep, ServicesDep

router = APIRouter(prefix=PROTECTED, tags=["submissions"])


@router.get("/submissions")
def submissions(services: ServicesDep) -> Page[SubmissionView]:
    """Submissions, extensions and retries that are being planned, the oldest first."""
    return Page(items=services.plans.underway())


@router.delete("/submissions/{submission}", status_code=204)
def cancel_submission(services: ServicesDep, actor: ActorDep, submission: str) -> None:
    """Stop planning it; nothing of it is left. Its own request is answered by 409."""
    actor.require(Role.SUBMIT)
    services.plans.cancel(submission, lambda owner: actor.require_owner(submission, owner))
    services.audit.note(actor, "stop planning", submission)
