"""Code that people send: files with methods, rules, networks, datasets and measurements of their own."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import PlainTextResponse
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from creditgrid.core.errors import CodeError, NotFoundError
from creditgrid.core.units.code import Files
from creditgrid.core.wire import CodeRequest, CodeView
from creditgrid.service.api.auth import PROTECTED
from creditgrid.service.api.dependencies import ActorDep, ContextDep, ServicesDep
from creditgrid.service.api.request_bodies import JSON_TYPES, BodyDep
from creditgrid.service.planning.plans import Check

PYTHON_TYPES = ("text/x-python", "application/x-python")

router = APIRouter(prefix=PROTECTED, tags=["code"])

BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "A Python file, whose name the query parameter `name` gives; or the files of a folder, as JSON.",
        "content": {
            PYTHON_TYPES[0]: {"schema": {"type": "string"}},
            "application/json": {"schema": CodeRequest.model_json_schema()},
        },
    }
}


@router.post(
    "/code",
    status_code=201,
    openapi_extra=BODY,
    responses={200: {"model": CodeView, "description": "It was sent before"}},
)
async def send_code(
    *,
    request: Request,
    context: ContextDep,
    actor: ActorDep,
    response: Response,
    body: BodyDep,
    name: Annotated[str, Query(max_length=200, description="Of a single file.")] = "code.py",
    content_type: str = Header(""),
) -> CodeView:
    """Send code. It is imported and described in a process of its own, with limits, and stored if it can be used.

    A spec names it by `code: <sha256>`, and may then choose its units. The service takes code only if it was started
    with `--allow-code`.
    """
    services = context.services
    services.codes.require_allowed()
    files = _files(body, name, content_type)

    def admit(check: Check) -> tuple[CodeView, bool]:
        return services.admission.admit(files, actor, check)

    view, created = await context.planning.run(request, admit)
    if created:
        units = ", ".join(unit.name for unit in view.units)
        await run_in_threadpool(partial(services.audit.note, actor, "code", view.sha256, units))
    else:
        response.status_code = 200
    response.headers["Location"] = f"{PROTECTED}/code/{view.sha256}"
    return view


@router.get("/code/{sha256}")
def code(services: ServicesDep, sha256: str) -> CodeView:
    """What is known of code: its files and its units."""
    return services.codes.view(sha256)


@router.get(
    "/code/{sha256}/files/{path:path}",
    response_class=PlainTextResponse,
    responses={200: {"content": {"text/plain": {}}, "description": "The file"}},
)
def code_file(services: ServicesDep, sha256: str, path: str) -> Response:
    """A file of code, as it was sent."""
    files = services.codes.files(sha256)
    if path not in files:
        raise NotFoundError(f"the code {sha256[:12]} has no file {path[:200]!r}; it has {', '.join(files)}")
    headers = {"Cache-Control": "private, max-age=31536000, immutable", "X-Content-Type-Options": "nosniff"}
    return Response(files[path], media_type="text/plain; charset=utf-8", headers=headers)


def _files(body: bytes, name: str, content_type: str) -> Files:
    """The files in a request.

    Raises:
        HTTPException: 415 for another content type.
        CodeError: the body is not what the type says.
    """
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type in PYTHON_TYPES:
        return {name: body}
    if media_type not in JSON_TYPES:
        accepted = ", ".join((*PYTHON_TYPES, *JSON_TYPES))
        raise HTTPException(415, f"send code as one of {accepted}; got {content_type!r:.100}")
    try:
        sent: Mapping[str, str] = CodeRequest.model_validate_json(body).files
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the body"
        raise CodeError(f'{where}: {first["msg"]}; send {{"files": {{"my_method.py": "…"}}}}') from error
    try:
        return {path: text.encode() for path, text in sent.items()}
    except UnicodeEncodeError as error:
        raise CodeError(f"a file holds a character that UTF-8 cannot hold ({error.reason})") from error
