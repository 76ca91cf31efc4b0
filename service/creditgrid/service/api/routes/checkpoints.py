"""Checkpoints that other programs trained."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from typing import Any

from fastapi import APIRouter, Header, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from creditgrid.core.wire import CheckpointView
from creditgrid.service.api.auth import PROTECTED
from creditgrid.service.api.dependencies import ActorDep, ContextDep
from creditgrid.service.api.disconnects import disconnected

PATH = "/checkpoints"
MEDIA_TYPE = "application/octet-stream"

router = APIRouter(prefix=PROTECTED, tags=["checkpoints"])

BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "A file by `torch.save(model.state_dict(), FILE)` of a residual MLP.",
        "content": {MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}},
    }
}


@router.post(
    PATH,
    status_code=201,
    openapi_extra=BODY,
    responses={200: {"model": CheckpointView, "description": "It was imported before"}},
)
async def import_checkpoint(
    context: ContextDep, actor: ActorDep, request: Request, response: Response, content_type: str = Header("")
) -> CheckpointView:
    """Import a checkpoint as an artifact. A spec names it as `checkpoint` instead of training one."""
    if content_type.partition(";")[0].strip().lower() != MEDIA_TYPE:
        raise HTTPException(415, f"send a checkpoint as {MEDIA_TYPE}; got {content_type!r:.100}")
    view, created = await context.importer.import_upload(_chunks(request), partial(disconnected, request.receive))
    if created:
        await run_in_threadpool(context.services.audit.note, actor, "import", view.name)
    else:
        response.status_code = 200
    response.headers["Location"] = f"{PROTECTED}/artifacts/{view.key}"
    return view


async def _chunks(request: Request) -> AsyncIterator[bytes]:
    try:
        async for chunk in request.stream():
            yield chunk
    except ClientDisconnect as error:
        raise HTTPException(400, "the upload was interrupted: send it again") from error
