"""Every error over HTTP is a problem document (RFC 9457)."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from sqlalchemy.exc import OperationalError
from starlette.exceptions import HTTPException
from starlette.routing import Match

from creditgrid.core.errors import (
    ArtifactMissing,
    BusyError,
    CheckpointError,
    CodeError,
    ConflictError,
    CreditGridError,
    DatasetError,
    ForbiddenError,
    NotFoundError,
    QueryError,
    RunnerError,
    SpecError,
)
from creditgrid.core.spec.faults import MAX_FAULTS, pointer
from creditgrid.core.wire import Problem, ProblemError
from creditgrid.service.ledger.engine import short_message

MEDIA_TYPE = "application/problem+json"
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
RETRY_LATER = {"Retry-After": "5"}

STATUS: tuple[tuple[type[CreditGridError], int], ...] = (
    (SpecError, 422),
    (DatasetError, 422),
    (CheckpointError, 422),
    (CodeError, 422),
    (NotFoundError, 404),
    (ArtifactMissing, 404),
    (ForbiddenError, 403),
    (ConflictError, 409),
    (QueryError, 400),
    (BusyError, 503),
    (RunnerError, 503),
    (CreditGridError, 500),
)
"""The status of each error; the first class that matches counts."""


def problem(status: int, detail: str, errors: list[ProblemError] | None = None) -> Problem:
    """A problem document; the title is the status's phrase."""
    return Problem(title=HTTPStatus(status).phrase, status=status, detail=detail, errors=errors or [])


def problem_from_error(error: CreditGridError) -> Problem:
    """The problem document for an error that CreditGrid raised on purpose."""
    status = next(status for kind, status in STATUS if isinstance(error, kind))
    if isinstance(error, SpecError):
        errors = [ProblemError(detail=fault.detail, pointer=fault.pointer) for fault in error.faults]
        count = "one fault" if len(errors) == 1 else f"{len(errors)} faults"
        return problem(status, f"the spec has {count}: {error}", errors)
    return problem(status, str(error))


def problem_response(document: Problem, headers: Mapping[str, str] | None = None) -> Response:
    """The problem document as a response."""
    body = document.model_dump_json(exclude_none=True)
    return Response(body, status_code=document.status, media_type=MEDIA_TYPE, headers=headers)


def add_error_handlers(app: FastAPI) -> None:
    """Answer the errors of ``app`` with problem documents."""
    app.add_exception_handler(CreditGridError, _creditgrid_error)
    app.add_exception_handler(RequestValidationError, _invalid_request)
    app.add_exception_handler(OperationalError, _ledger_unavailable)
    app.add_exception_handler(HTTPException, _http_error)


async def _creditgrid_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, CreditGridError)
    document = problem_from_error(error)
    if document.status == 500:
        structlog.get_logger("creditgrid").error("request failed", exc_info=error)
    return problem_response(document, RETRY_LATER if document.status == 503 else None)


async def _ledger_unavailable(request: Request, error: Exception) -> Response:
    structlog.get_logger("creditgrid").warning(
        "the ledger is unavailable", path=request.url.path, reason=short_message(error)
    )
    detail = "the ledger cannot be read or written now; try again later (the service's log has the reason)"
    return problem_response(problem(503, detail), RETRY_LATER)


async def _invalid_request(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    found = error.errors()
    errors = [_fault(item) for item in found[:MAX_FAULTS]]
    if more := len(found) - len(errors):
        errors.append(ProblemError(detail=f"and {more:,} more"))
    return problem_response(problem(422, "; ".join(item.detail for item in errors), errors))


def _fault(item: Mapping[str, Any]) -> ProblemError:
    where, *path = item["loc"]
    if where == "body":
        if item["type"] == "json_invalid":
            return ProblemError(detail=f"the body is not JSON: {item.get('ctx', {}).get('error', item['msg'])}")
        name = f"{path[-1]}: " if path else ""
        return ProblemError(detail=f"{name}{item['msg']}", pointer=pointer(*path))
    return ProblemError(detail=f"{where} parameter {'.'.join(map(str, path))}: {item['msg']}")


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    detail = str(error.detail)
    if error.status_code == 404 and detail == HTTPStatus.NOT_FOUND.phrase:
        detail = f"there is no route {request.url.path}; /docs lists the routes"
    elif error.status_code == 405:
        allowed = ", ".join(_methods(request))
        detail = f"{request.method} is not allowed here; use {allowed}"
        return problem_response(problem(405, detail), {"Allow": allowed})
    return problem_response(problem(error.status_code, detail), error.headers)


def _methods(request: Request) -> list[str]:
    """All methods of the request's path. Starlette names only those of the first route that has the path."""
    return [method for method in METHODS if _has_route(request, method)]


def _has_route(request: Request, method: str) -> bool:
    scope = {**request.scope, "method": method}
    return any(route.matches(scope)[0] is Match.FULL for route in request.app.routes)
