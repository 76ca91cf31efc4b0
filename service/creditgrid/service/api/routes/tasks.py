"""Tasks of all sweeps, by key."""

from __future__ import annotations

from fastapi import APIRouter

from creditgrid.core.wire import TaskDocument
from creditgrid.service.api.auth import PROTECTED
from creditgrid.service.api.dependencies import ServicesDep

router = APIRouter(prefix=PROTECTED, tags=["tasks"])


@router.get("/tasks/{key}")
def task(services: ServicesDep, key: str) -> TaskDocument:
    """One task: all that is needed to compute it again, besides the artifacts of its parents."""
    return services.tasks.get(key)
