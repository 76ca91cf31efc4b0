"""Making room: artifacts that no open sweep needs go."""

from __future__ import annotations

from fastapi import APIRouter

from creditgrid.core.wire import RetentionRequest, RetentionView
from creditgrid.service.api.auth import PROTECTED
from creditgrid.service.api.dependencies import ServicesDep

router = APIRouter(prefix=PROTECTED, tags=["artifacts"])


@router.post("/gc")
def gc(services: ServicesDep, body: RetentionRequest) -> RetentionView:
    """Remove artifacts by age and size, and what interrupted writes left; with `dry_run` only tell what would go.

    Without `older_than_s` and `max_bytes` only leftovers go. Rows stay, and what a later sweep needs is computed again.
    """
    return services.retention.run(body)
