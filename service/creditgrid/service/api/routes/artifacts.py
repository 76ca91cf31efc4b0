"""Artifacts: the tensors that tasks computed, and the removal of those that no open sweep needs."""

from __future__ import annotations

import base64
import os
from typing import Any, BinaryIO

import structlog
from fastapi import APIRouter, Header
from fastapi.responses import FileResponse, Response
from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope, Send

from creditgrid.core.errors import ArtifactCorrupt
from creditgrid.core.wire import RetentionRequest, RetentionView
from creditgrid.service.api.auth import PROTECTED
from creditgrid.service.api.dependencies import ActorDep, ServicesDep
from creditgrid.service.api.problems import problem, problem_response

MEDIA_TYPE = "application/vnd.safetensors"
RANGE_REFUSALS = {
    400: "the header Range cannot be read: write it as bytes=FIRST-LAST",
    416: "the header Range asks for bytes beyond the end of the file",
}

log = structlog.get_logger()


class OpenFileResponse(FileResponse):
    """Sends an open file or ranges of it, even if its name is removed meanwhile, and closes it."""

    def __init__(self, file: BinaryIO, **options: Any) -> None:
        super().__init__(f"/dev/fd/{file.fileno()}", stat_result=os.fstat(file.fileno()), **options)
        self._file = file

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See FileResponse, which would answer to a range that it cannot send with plain text."""
        refusal: Response | None = None

        async def send_or_refuse(message: Message) -> None:
            nonlocal refusal
            if message["type"] == "http.response.start" and message["status"] in RANGE_REFUSALS:
                size = Headers(raw=message["headers"]).get("content-range")
                document = problem(message["status"], RANGE_REFUSALS[message["status"]])
                refusal = problem_response(document, {} if size is None else {"Content-Range": size})
            elif refusal is None:
                await send(message)

        try:
            await super().__call__(scope, receive, send_or_refuse)
        finally:
            self._file.close()
        if refusal is not None:
            await refusal(scope, receive, send)


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
    """An artifact's tensors. ``Repr-Digest`` (RFC 9530) is the SHA-256 that was recorded when they were written.

    The service checks the whole file against this digest before it sends the first byte.
    """
    record = services.store.record(key)
    etag = f'"{key}"'
    headers = {
        "ETag": etag,
        "Cache-Control": "private, max-age=31536000, immutable",
        "Repr-Digest": f"sha-256=:{base64.b64encode(bytes.fromhex(record['sha256'])).decode()}:",
    }
    if etag in (tag.strip().removeprefix("W/") for tag in if_none_match.split(",")):
        return Response(status_code=304, headers=headers)
    try:
        file = services.store.open(key)
    except ArtifactCorrupt as error:
        log.warning("a corrupt artifact was requested", key=key, error=str(error))
        raise ArtifactCorrupt(f"{error}; it is computed again when a task next needs it") from error
    return OpenFileResponse(file, media_type=MEDIA_TYPE, filename=f"{key}.safetensors", headers=headers)


@router.get("/artifacts/{key}/record")
def record(services: ServicesDep, key: str) -> dict[str, Any]:
    """An artifact's record: the payload whose SHA-256 is the key, tensor shapes, checksum and provenance."""
    return services.store.record(key)


@router.post("/gc")
def gc(services: ServicesDep, actor: ActorDep, body: RetentionRequest) -> RetentionView:
    """Remove artifacts by age and size, and temporary files of interrupted writes; with `dry_run` only report them.

    Without `older_than_s` and `max_bytes` it removes temporary files only. Rows stay. A later sweep computes again
    what it needs.
    """
    return services.retention.run(body, actor)
