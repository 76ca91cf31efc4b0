"""Liveness, readiness and metrics, without a token. They answer also while all threads that serve requests are busy."""

from __future__ import annotations

from anyio import to_thread
from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response

from creditgrid.service.api.dependencies import ContextDep, ServicesDep
from creditgrid.service.api.problems import RETRY_LATER, problem, problem_response

router = APIRouter(tags=["health"])


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """Liveness: the process answers."""
    return {"status": "ok"}


@router.get("/readyz", response_model=dict[str, str])
async def readyz(services: ServicesDep) -> Response:
    """Readiness: sweeps advance. Otherwise 503 with the reason."""
    reason = services.scheduler.problem()
    if reason is not None:
        return problem_response(problem(503, reason), RETRY_LATER)
    return JSONResponse({"status": "ready"})


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(context: ContextDep) -> Response:
    """Metrics in Prometheus' text format."""
    text, media_type = await to_thread.run_sync(context.metrics.exposition, limiter=context.metrics_thread)
    return Response(text, headers={"Content-Type": media_type})
