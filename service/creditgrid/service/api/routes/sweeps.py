"""Sweeps: submit, list, inspect, cancel, pause, resume, retry and extend."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from creditgrid.core.errors import ConflictError, PlanCancelled
from creditgrid.core.spec.extension import parse_extension
from creditgrid.core.states import State
from creditgrid.core.wire import CellView, Condition, FailureView, Page, SummaryView, SweepView, TaskView
from creditgrid.service.api import pagination
from creditgrid.service.api.auth import PROTECTED
from creditgrid.service.api.conditional import CONDITIONAL, Document, IfNoneMatch, conditional_response, document
from creditgrid.service.api.dependencies import ActorDep, Context, ContextDep, ServicesDep
from creditgrid.service.api.pagination import Cursor, Limit
from creditgrid.service.api.request_bodies import EXTENSION_BODY, SPEC_BODY, BodyDep, spec_text
from creditgrid.service.api.shared_reads import Read, SharedReads
from creditgrid.service.planning.plans import Check
from creditgrid.service.reading.sweeps import is_settled

router = APIRouter(prefix=PROTECTED, tags=["sweeps"])

StateFilter = Annotated[State | None, Query(description="Only items in this state.")]
IdempotencyKey = Annotated[
    str | None,
    Header(min_length=1, max_length=255, description="A repeated key with the same body returns the first sweep."),
]


@router.post("/sweeps", status_code=201, openapi_extra=SPEC_BODY)
async def submit(
    *,
    request: Request,
    context: ContextDep,
    actor: ActorDep,
    response: Response,
    body: BodyDep,
    content_type: str = Header(""),
    idempotency_key: IdempotencyKey = None,
) -> SweepView:
    """Plan a spec and run what it needs. A spec is accepted or refused as a whole."""
    text, services = spec_text(body, content_type), context.services
    replay = None if idempotency_key is None else (idempotency_key, hashlib.sha256(body).hexdigest())

    def plan(check: Check) -> SweepView:
        sweep, _ = services.control.submit(text, replay, actor, check)
        return services.sweeps.get(sweep)

    try:
        view = await context.planning.run(request, plan)
    except PlanCancelled:
        raise
    except ConflictError as error:  # as the Idempotency-Key draft requires when the body differs
        raise HTTPException(422, str(error)) from error
    response.headers["Location"] = f"/v1/sweeps/{view.id}"
    return view


@router.get("/sweeps", response_model=Page[SweepView], responses=CONDITIONAL)
async def sweeps(
    context: ContextDep,
    *,
    state: StateFilter = None,
    owner: Annotated[str | None, Query(description="Only sweeps that this person submitted.")] = None,
    cursor: Cursor = None,
    limit: Limit = 100,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """Sweeps, newest first."""
    after = None if cursor is None else pagination.decode_number(cursor)

    def read() -> Read[Document]:
        items, following = context.services.sweeps.page(state, after, limit, owner)
        page = Page[SweepView](items=items, next=pagination.encode(following))
        return _written(page, settled=all(map(is_settled, items)))

    changes = context.services.changes
    found = await context.reads.get(("sweeps", state, owner, after, limit), read, lambda: changes.of_any_sweep)
    return conditional_response(found, if_none_match)


@router.get("/sweeps/{sweep}", response_model=SweepView, responses=CONDITIONAL)
async def sweep(context: ContextDep, sweep: str, if_none_match: IfNoneMatch = None) -> Response:
    """One sweep: its spec, its cells by state, its running calls, and the time left."""

    def read() -> Read[Document]:
        view = context.services.sweeps.get(sweep)
        return _written(view, settled=is_settled(view))

    found = await context.reads.get(("sweep", sweep), read, lambda: context.services.changes.of_sweep(sweep))
    return conditional_response(found, if_none_match)


@router.get("/sweeps/{sweep}/cells", response_model=Page[CellView], responses=CONDITIONAL)
async def cells(
    context: ContextDep,
    sweep: str,
    *,
    state: StateFilter = None,
    cursor: Cursor = None,
    limit: Limit = 100,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """Cells in the order of the grid."""
    after = -1 if cursor is None else pagination.decode_number(cursor)

    def read() -> BaseModel:
        items, following = context.services.cells.page(sweep, state, after, limit)
        return Page(items=items, next=pagination.encode(following))

    found = await _of_sweep(context, context.reads, ("cells", sweep, state, after, limit), read)
    return conditional_response(found, if_none_match)


@router.get("/sweeps/{sweep}/tasks", response_model=Page[TaskView], responses=CONDITIONAL)
async def tasks(
    context: ContextDep,
    sweep: str,
    *,
    state: StateFilter = None,
    cursor: Cursor = None,
    limit: Limit = 100,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """The tasks that the cells depend on, in the order of their keys."""
    after = "" if cursor is None else pagination.decode(cursor)

    def read() -> BaseModel:
        items, following = context.services.tasks.page(sweep, state, after, limit)
        return Page(items=items, next=pagination.encode(following))

    found = await _of_sweep(context, context.reads, ("tasks", sweep, state, after, limit), read)
    return conditional_response(found, if_none_match)


@router.get("/sweeps/{sweep}/failures", response_model=Page[FailureView], responses=CONDITIONAL)
async def failures(context: ContextDep, sweep: str, if_none_match: IfNoneMatch = None) -> Response:
    """The failures by cause, most frequent first, each with a traceback."""

    def read() -> BaseModel:
        return Page(items=context.services.failures.of(sweep))

    found = await _of_sweep(context, context.slow_reads, ("failures", sweep), read)
    return conditional_response(found, if_none_match)


@router.get("/sweeps/{sweep}/summary", response_model=SummaryView, responses=CONDITIONAL)
async def summary(context: ContextDep, sweep: str, if_none_match: IfNoneMatch = None) -> Response:
    """The experiment's summary and verdicts, from the rows so far."""

    def read() -> BaseModel:
        return context.services.summaries.of(sweep)

    found = await _of_sweep(context, context.slow_reads, ("summary", sweep), read)
    return conditional_response(found, if_none_match)


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
async def retry(request: Request, context: ContextDep, actor: ActorDep, sweep: str) -> SweepView:
    """Run the failed and skipped cells of an ended sweep again, and those that a failed sweep cancelled."""
    services = context.services

    def plan(check: Check) -> SweepView:
        services.control.retry(sweep, actor, check)
        return services.sweeps.get(sweep)

    return await context.planning.run(request, plan)


@router.post("/sweeps/{sweep}/extend", openapi_extra=EXTENSION_BODY)
async def extend(
    *,
    request: Request,
    context: ContextDep,
    actor: ActorDep,
    sweep: str,
    body: BodyDep,
    content_type: str = Header(""),
) -> SweepView:
    """Add axis values or cells to a running or ended sweep; its present cells stay."""
    text, services = spec_text(body, content_type), context.services

    def plan(check: Check) -> SweepView:
        added = services.control.extend(sweep, parse_extension(text.parse()), actor, check)
        return _view_after(services, sweep, added > 0, "it has all of these cells")

    return await context.planning.run(request, plan)


def _view_after(services: ServicesDep, sweep: str, changed: bool, why_not: str) -> SweepView:
    """The sweep now, with a condition if the request changed nothing."""
    view = services.sweeps.get(sweep)
    if changed:
        return view
    unchanged = Condition(type="unchanged", message=f"nothing was changed: {why_not}")
    return view.model_copy(update={"conditions": [*view.conditions, unchanged]})


async def _of_sweep(
    context: Context, reads: SharedReads, key: tuple[Any, ...], read: Callable[[], BaseModel]
) -> Document:
    """What ``read`` says of the sweep ``key[1]``, as JSON; shared while it is valid."""
    services, sweep = context.services, key[1]

    def settled_read() -> Read[Document]:
        settled = services.sweeps.is_settled(sweep)  # first: what is settled stays so until the sweep itself changes
        return _written(read(), settled=settled)

    return await reads.get(key, settled_read, lambda: services.changes.of_sweep(sweep))


def _written(answer: BaseModel, *, settled: bool) -> Read[Document]:
    found = document(answer.model_dump_json().encode())
    return Read(found, len(found.body), settled=settled)
