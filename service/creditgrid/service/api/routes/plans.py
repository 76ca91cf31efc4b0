"""Plans: what a sweep would run."""

from __future__ import annotations

from fastapi import APIRouter, Header, Request

from creditgrid.core.wire import PlanView
from creditgrid.service.api.auth import PROTECTED
from creditgrid.service.api.dependencies import ActorDep, ContextDep
from creditgrid.service.api.request_bodies import SPEC_BODY, BodyDep, spec_text

router = APIRouter(prefix=PROTECTED, tags=["plans"])


@router.post("/plans", openapi_extra=SPEC_BODY)
async def plan(
    request: Request, context: ContextDep, actor: ActorDep, body: BodyDep, content_type: str = Header("")
) -> PlanView:
    """What a sweep would run: cells and tasks by kind, cached or new, and the cause of each miss. Writes nothing."""
    text, plans = spec_text(body, content_type), context.services.plans
    return await context.planning.run(request, lambda check: plans.view(text, actor.name, check))
