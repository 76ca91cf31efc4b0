"""Tasks of any sweep, by their keys."""

from __future__ import annotations

from fastapi import APIRouter

from creditgrid.core.wire import TaskDocument
from creditgrid.service.api.auth import PROTECTED
from creditgrid.service.api.dependencies import ServicesDep

router = APIRouter(prefix=PROTECTED, tags=["tasks"])


@router.get("/tasks/{key}")
def task(services: ServicesDep, key: str) -> TaskDocument:
    """One stage or cell: all that it takes to compute it again, given the artifacts of its parents."""
    return services.tasks.get(key)
