"""Retention: removal of artifacts that no open sweep needs."""

from __future__ import annotations

from fastapi import APIRouter

from creditgrid.core.wire import RetentionRequest, RetentionView
from creditgrid.service.api.auth import PROTECTED
from creditgrid.service.api.dependencies import ServicesDep

router = APIRouter(prefix=PROTECTED, tags=["artifacts"])


@router.post("/gc")
def gc(services: ServicesDep, body: RetentionRequest) -> RetentionView:
    """Remove artifacts by age and size, and temporary files of interrupted writes; with `dry_run` only report them.

    Without `older_than_s` and `max_bytes` it removes temporary files only. Rows stay. A later sweep computes again
    what it needs.
    """
    return services.retention.run(body)
