"""Plans: what a sweep would run."""

from __future__ import annotations

from fastapi import APIRouter, Header

from creditgrid.core.wire import PlanView
from creditgrid.service.api.auth import PROTECTED
from creditgrid.service.api.dependencies import ServicesDep
from creditgrid.service.api.request_bodies import SPEC_BODY, BodyDep, parse_document

router = APIRouter(prefix=PROTECTED, tags=["plans"])


@router.post("/plans", openapi_extra=SPEC_BODY)
def plan(services: ServicesDep, body: BodyDep, content_type: str = Header("")) -> PlanView:
    """What a sweep would run: cells and tasks by kind, cached or new, and the cause of each miss. Writes nothing."""
    return services.planner.plan(parse_document(body, content_type))
