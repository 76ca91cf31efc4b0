"""Sweeps: submit, list, inspect, cancel, pause, resume, retry and extend."""

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
from creditgrid.service.api.dependencies import ActorDep, ServicesDep
from creditgrid.service.api.pagination import Cursor, Limit
from creditgrid.service.api.request_bodies import EXTENSION_BODY, SPEC_BODY, BodyDep, parse_document

router = APIRouter(prefix=PROTECTED, tags=["sweeps"])

StateFilter = Annotated[State | None, Query(description="Only items in this state.")]
IdempotencyKey = Annotated[
    str | None,
    Header(min_length=1, max_length=255, description="A repeated key with the same body returns the first sweep."),
]


@router.post("/sweeps", status_code=201, openapi_extra=SPEC_BODY)
def submit(
    *,
    services: ServicesDep,
    actor: ActorDep,
    response: Response,
    body: BodyDep,
    content_type: str = Header(""),
    idempotency_key: IdempotencyKey = None,
) -> SweepView:
    """Plan a spec and run what it needs. A spec is accepted or refused as a whole."""
    document = parse_document(body, content_type)
    replay = None if idempotency_key is None else (idempotency_key, hashlib.sha256(body).hexdigest())
    try:
        sweep, _ = services.control.submit(document, replay, actor)
    except ConflictError as error:  # as the Idempotency-Key draft requires when the body differs
        raise HTTPException(422, str(error)) from error
    response.headers["Location"] = f"/v1/sweeps/{sweep}"
    return services.sweeps.get(sweep)


@router.get("/sweeps")
def sweeps(
    services: ServicesDep, state: StateFilter = None, cursor: Cursor = None, limit: Limit = 100
) -> Page[SweepView]:
    """Sweeps, newest first."""
    after = None if cursor is None else pagination.decode_number(cursor)
    items, following = services.sweeps.page(state, after, limit)
    return Page(items=items, next=pagination.encode(following))


@router.get("/sweeps/{sweep}")
def sweep(services: ServicesDep, sweep: str) -> SweepView:
    """One sweep: its spec, its cells by state, its running calls, and the time left."""
    return services.sweeps.get(sweep)


@router.get("/sweeps/{sweep}/cells")
def cells(
    services: ServicesDep, sweep: str, state: StateFilter = None, cursor: Cursor = None, limit: Limit = 100
) -> Page[CellView]:
    """Cells in the order of the grid."""
    after = -1 if cursor is None else pagination.decode_number(cursor)
    items, following = services.cells.page(sweep, state, after, limit)
    return Page(items=items, next=pagination.encode(following))


@router.get("/sweeps/{sweep}/tasks")
def tasks(
    services: ServicesDep, sweep: str, state: StateFilter = None, cursor: Cursor = None, limit: Limit = 100
) -> Page[TaskView]:
    """The tasks that the cells depend on, in the order of their keys."""
    after = "" if cursor is None else pagination.decode(cursor)
    items, following = services.tasks.page(sweep, state, after, limit)
    return Page(items=items, next=pagination.encode(following))


@router.get("/sweeps/{sweep}/failures")
def failures(services: ServicesDep, sweep: str) -> Page[FailureView]:
    """The failures by cause, most frequent first, each with a traceback."""
    return Page(items=services.failures.of(sweep))


@router.get("/sweeps/{sweep}/summary")
def summary(services: ServicesDep, sweep: str) -> SummaryView:
    """The experiment's summary and verdicts, from the rows so far."""
    return services.summaries.of(sweep)


@router.post("/sweeps/{sweep}/cancel")
def cancel(services: ServicesDep, actor: ActorDep, sweep: str) -> SweepView:
    """Cancel a sweep; its finished cells stay. Cancelling a cancelled sweep changes nothing."""
    return _view_after(services, sweep, services.control.cancel(sweep, actor), "it was cancelled before")


@router.post("/sweeps/{sweep}/pause")
def pause(services: ServicesDep, actor: ActorDep, sweep: str) -> SweepView:
    """Start no more calls of a sweep. Running calls finish, and calls that another sweep needs continue."""
    return _view_after(services, sweep, services.control.pause(sweep, actor), "it was paused before")


@router.post("/sweeps/{sweep}/resume")
def resume(services: ServicesDep, actor: ActorDep, sweep: str) -> SweepView:
    """Resume a paused sweep."""
    return _view_after(services, sweep, services.control.resume(sweep, actor), "it was not paused")


@router.post("/sweeps/{sweep}/retry")
def retry(services: ServicesDep, actor: ActorDep, sweep: str) -> SweepView:
    """Run the failed and skipped cells of an ended sweep again, and those that a failed sweep cancelled."""
    services.control.retry(sweep, actor)
    return services.sweeps.get(sweep)


@router.post("/sweeps/{sweep}/extend", openapi_extra=EXTENSION_BODY)
def extend(
    services: ServicesDep, actor: ActorDep, sweep: str, body: BodyDep, content_type: str = Header("")
) -> SweepView:
    """Add axis values or cells to a running or ended sweep; its present cells stay."""
    extension = parse_extension(parse_document(body, content_type))
    return _view_after(
        services, sweep, services.control.extend(sweep, extension, actor) > 0, "it has all of these cells"
    )


def _view_after(services: ServicesDep, sweep: str, changed: bool, why_not: str) -> SweepView:
    """The sweep now, with a condition if the request changed nothing."""
    view = services.sweeps.get(sweep)
    if changed:
        return view
    unchanged = Condition(type="unchanged", message=f"nothing was changed: {why_not}")
    return view.model_copy(update={"conditions": [*view.conditions, unchanged]})
