"""The audit log, for administrators."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from creditgrid.core.wire import AuditView, Page
from creditgrid.service.api import pagination
from creditgrid.service.api.auth import PROTECTED
from creditgrid.service.api.dependencies import ServicesDep
from creditgrid.service.api.pagination import Cursor, Limit

router = APIRouter(prefix=PROTECTED, tags=["people"])


@router.get("/audit")
def audit(
    services: ServicesDep,
    actor: Annotated[str | None, Query(description="Only what the holder of this token did.")] = None,
    target: Annotated[str | None, Query(description="Only what was done to this sweep, token or checkpoint.")] = None,
    cursor: Cursor = None,
    limit: Limit = 100,
) -> Page[AuditView]:
    """Who changed what, the newest first; refused requests too. No route changes or removes an entry."""
    after = None if cursor is None else pagination.decode_number(cursor)
    items, following = services.audit.page(actor, target, after, limit)
    return Page(items=items, next=pagination.encode(following))
