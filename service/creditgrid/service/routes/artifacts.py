"""What tasks made."""

from __future__ import annotations

import base64
from typing import Any

from fastapi import APIRouter, Header
from fastapi.responses import FileResponse, Response

from creditgrid.core.errors import ArtifactCorrupt
from creditgrid.service.auth import PROTECTED
from creditgrid.service.dependencies import ServicesDep
from creditgrid.workers.artifacts import TENSORS

MEDIA_TYPE = "application/vnd.safetensors"

router = APIRouter(prefix=PROTECTED, tags=["artifacts"])


@router.get(
    "/artifacts/{key}",
    response_class=FileResponse,
    responses={
        200: {"content": {MEDIA_TYPE: {}}, "description": "A safetensors file"},
        304: {"description": "Unchanged"},
    },
)
def artifact(services: ServicesDep, key: str, if_none_match: str = Header("")) -> Response:
    """An artifact's tensors. ``Repr-Digest`` (RFC 9530) is the SHA-256 that was recorded when they were written."""
    record = services.store.record(key)
    etag = f'"{key}"'
    headers = {
        "ETag": etag,
        "Cache-Control": "private, max-age=31536000, immutable",
        "Repr-Digest": f"sha-256=:{base64.b64encode(bytes.fromhex(record['sha256'])).decode()}:",
    }
    if etag in (tag.strip().removeprefix("W/") for tag in if_none_match.split(",")):
        return Response(status_code=304, headers=headers)
    path = services.store.path(key) / TENSORS
    if not path.is_file():
        raise ArtifactCorrupt(f"the tensors of artifact {key} are gone while its record stands: submit the sweep again")
    return FileResponse(path, media_type=MEDIA_TYPE, filename=f"{key}.safetensors", headers=headers)


@router.get("/artifacts/{key}/record")
def record(services: ServicesDep, key: str) -> dict[str, Any]:
    """What an artifact is: the payload its key is the SHA-256 of, tensor shapes, checksum and provenance."""
    return services.store.record(key)
