"""Whether the service is there, whether it can work, and its numbers. Open to anyone who can reach it."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response

from creditgrid.service.api.dependencies import ContextDep, ServicesDep
from creditgrid.service.api.problems import problem, respond

router = APIRouter(tags=["health"])


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


@router.get("/readyz", response_model=dict[str, str])
def readyz(services: ServicesDep) -> Response:
    """Sweeps advance; 503 with the reason when they do not."""
    reason = services.scheduler.problem()
    if reason is not None:
        return respond(problem(503, reason), {"Retry-After": "5"})
    return JSONResponse({"status": "ready"})


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
def metrics(context: ContextDep) -> Response:
    """Prometheus metrics."""
    text, media_type = context.telemetry.exposition()
    return Response(text, headers={"Content-Type": media_type})
