"""Checkpoints that other programs trained."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any, cast

from fastapi import APIRouter, Depends, Header, Request, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from creditgrid.core.wire import CheckpointView
from creditgrid.service.api.auth import PROTECTED
from creditgrid.service.api.checkpoint_import import Importer

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


def importer(request: Request) -> Importer:
    """The app's importer."""
    return cast(Importer, request.app.state.importer)


ImporterDep = Annotated[Importer, Depends(importer)]


@router.post(
    PATH,
    status_code=201,
    openapi_extra=BODY,
    responses={200: {"model": CheckpointView, "description": "It was there already"}},
)
async def import_checkpoint(
    importer: ImporterDep, request: Request, response: Response, content_type: str = Header("")
) -> CheckpointView:
    """Make a foreign checkpoint an artifact, which a spec names as `checkpoint` instead of training one."""
    if content_type.partition(";")[0].strip().lower() != MEDIA_TYPE:
        raise HTTPException(415, f"a checkpoint is sent as {MEDIA_TYPE}; got {content_type!r:.100}")
    view, created = await importer.load(_chunks(request))
    if not created:
        response.status_code = 200
    response.headers["Location"] = f"{PROTECTED}/artifacts/{view.key}"
    return view


async def _chunks(request: Request) -> AsyncIterator[bytes]:
    try:
        async for chunk in request.stream():
            yield chunk
    except ClientDisconnect as error:
        raise HTTPException(400, "the upload was cut off: send it again") from error
