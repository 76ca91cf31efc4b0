"""Sweeps: submitted, listed, looked into, stopped, let go on, and extended."""

from __future__ import annotations

import hashlib
from typing import Annotated

from fastapi import APIRouter, Header, Query, Response
from starlette.exceptions import HTTPException

from creditgrid.core.errors import ConflictError
from creditgrid.core.spec.extension import parse_extension
from creditgrid.core.states import State
from creditgrid.core.wire import CellView, Condition, FailureView, Page, SummaryView, SweepView, TaskView
from creditgrid.service.api import pagination
from creditgrid.service.api.auth import PROTECTED
from creditgrid.service.api.dependencies import ServicesDep
from creditgrid.service.api.pagination import Cursor, Limit
from creditgrid.service.api.request_bodies import EXTENSION_BODY, SPEC_BODY, BodyDep, parse_document

router = APIRouter(prefix=PROTECTED, tags=["sweeps"])

OnlyState = Annotated[State | None, Query(description="Only those at this state.")]
IdempotencyKey = Annotated[
    str | None,
    Header(min_length=1, max_length=255, description="The same key and body again return the first answer's sweep."),
]


@router.post("/sweeps", status_code=201, openapi_extra=SPEC_BODY)
def submit(
    services: ServicesDep,
    response: Response,
    body: BodyDep,
    content_type: str = Header(""),
    idempotency_key: IdempotencyKey = None,
) -> SweepView:
    """Plan a spec and run what it needs. It is refused whole, or written whole."""
    document = parse_document(body, content_type)
    replay = None if idempotency_key is None else (idempotency_key, hashlib.sha256(body).hexdigest())
    try:
        sweep, _ = services.control.submit(document, replay)
    except ConflictError as error:  # what the Idempotency-Key draft asks for when the key comes with another body
        raise HTTPException(422, str(error)) from error
    response.headers["Location"] = f"/v1/sweeps/{sweep}"
    return services.sweeps.get(sweep)


@router.get("/sweeps")
def sweeps(
    services: ServicesDep, state: OnlyState = None, cursor: Cursor = None, limit: Limit = 100
) -> Page[SweepView]:
    """Sweeps, the newest first."""
    after = None if cursor is None else str(pagination.decode_number(cursor))
    items, following = services.sweeps.page(state, after, limit)
    return Page(items=items, next=pagination.encode(following))


@router.get("/sweeps/{sweep}")
def sweep(services: ServicesDep, sweep: str) -> SweepView:
    """One sweep: its spec, its cells by state, what runs, and the time left."""
    return services.sweeps.get(sweep)


@router.get("/sweeps/{sweep}/cells")
def cells(
    services: ServicesDep, sweep: str, state: OnlyState = None, cursor: Cursor = None, limit: Limit = 100
) -> Page[CellView]:
    """Cells in the order of the grid."""
    after = -1 if cursor is None else pagination.decode_number(cursor)
    items, following = services.cells.page(sweep, state, after, limit)
    return Page(items=items, next=pagination.encode(following))


@router.get("/sweeps/{sweep}/tasks")
def tasks(
    services: ServicesDep, sweep: str, state: OnlyState = None, cursor: Cursor = None, limit: Limit = 100
) -> Page[TaskView]:
    """The tasks that the cells stand on, in the order of their keys."""
    after = "" if cursor is None else pagination.decode(cursor)
    items, following = services.tasks.page(sweep, state, after, limit)
    return Page(items=items, next=pagination.encode(following))


@router.get("/sweeps/{sweep}/failures")
def failures(services: ServicesDep, sweep: str) -> Page[FailureView]:
    """What failed, grouped by cause, the most frequent first, with a traceback of each."""
    return Page(items=services.failures.of(sweep))


@router.get("/sweeps/{sweep}/summary")
def summary(services: ServicesDep, sweep: str) -> SummaryView:
    """The experiment's table and verdicts over the rows that are there."""
    return services.summaries.of(sweep)


@router.post("/sweeps/{sweep}/cancel")
def cancel(services: ServicesDep, sweep: str) -> SweepView:
    """Stop a sweep; what it has finished stays. Cancelling a cancelled sweep changes nothing."""
    return _after(services, sweep, services.control.cancel(sweep), "it was cancelled before")


@router.post("/sweeps/{sweep}/pause")
def pause(services: ServicesDep, sweep: str) -> SweepView:
    """Begin nothing more of a sweep; what runs, ends, and what another sweep needs goes on."""
    return _after(services, sweep, services.control.pause(sweep), "it was paused before")


@router.post("/sweeps/{sweep}/resume")
def resume(services: ServicesDep, sweep: str) -> SweepView:
    """Let a paused sweep go on."""
    return _after(services, sweep, services.control.resume(sweep), "it was not paused")


@router.post("/sweeps/{sweep}/retry")
def retry(services: ServicesDep, sweep: str) -> SweepView:
    """Begin the failed and skipped cells of an ended sweep anew, and what it stopped before; the others stay."""
    services.control.retry(sweep)
    return services.sweeps.get(sweep)


@router.post("/sweeps/{sweep}/extend", openapi_extra=EXTENSION_BODY)
def extend(services: ServicesDep, sweep: str, body: BodyDep, content_type: str = Header("")) -> SweepView:
    """Add axis values or cells to a running or ended sweep; the cells it has stay as they are."""
    extension = parse_extension(parse_document(body, content_type))
    return _after(services, sweep, services.control.extend(sweep, extension) > 0, "it has all of these cells")


def _after(services: ServicesDep, sweep: str, changed: bool, why_not: str) -> SweepView:
    """The sweep as it is now, with a word on it where a request has changed nothing."""
    view = services.sweeps.get(sweep)
    if changed:
        return view
    unchanged = Condition(type="unchanged", message=f"nothing was changed: {why_not}")
    return view.model_copy(update={"conditions": [*view.conditions, unchanged]})
