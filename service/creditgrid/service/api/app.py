"""The HTTP application: its routes and middleware."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fastapi import Depends, FastAPI
from fastapi.security import HTTPBearer
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware

from creditgrid.core.wire import MAX_CHECKPOINT_BYTES, Problem
from creditgrid.service.api import problems
from creditgrid.service.api.access import describe_roles
from creditgrid.service.api.auth import PROTECTED, AuthMiddleware
from creditgrid.service.api.body_limit import BodyLimitMiddleware
from creditgrid.service.api.checkpoint_import import CheckpointImporter
from creditgrid.service.api.dependencies import Context
from creditgrid.service.api.metrics import Metrics
from creditgrid.service.api.requests import RequestMiddleware
from creditgrid.service.api.routes import (
    artifacts,
    audit,
    checkpoints,
    code,
    events,
    experiments,
    health,
    logs,
    plans,
    results,
    submissions,
    sweeps,
    tasks,
    tokens,
)
from creditgrid.service.reading.sql import Sandbox
from creditgrid.service.services import Services
from creditgrid.service.settings import Settings

DESCRIPTION = """Grids of credit-assignment experiments: submit a sweep, watch it, read its rows, query all rows by SQL.

Errors are `application/problem+json` (RFC 9457). Lists have pages: pass `next` of a page as `cursor`.

A service with tokens needs `Authorization: Bearer …`. The holder of a token of role `read` may read, plan and query;
`submit` may also submit sweeps, change their own, import checkpoints, and send code; `admin` may do everything."""


def _problem_schema() -> dict[str, Any]:
    """The JSON Schema of a problem document in one piece: a reference within it would lead nowhere in the API's."""
    schema = Problem.model_json_schema()
    schema["properties"]["errors"]["items"] = schema.pop("$defs")["ProblemError"]
    return schema


PROBLEM: dict[str, Any] = {
    "description": "A problem document",
    "content": {problems.MEDIA_TYPE: {"schema": _problem_schema()}},
}


class Api(FastAPI):
    """An app whose OpenAPI document says which role each operation needs."""

    def openapi(self) -> dict[str, Any]:
        """The document, made at the first request for it."""
        made = self.openapi_schema is None
        document = super().openapi()
        if made:
            describe_roles(document)
        return document


def create_app(services: Services, settings: Settings) -> FastAPI:
    """The application over these services. Its lifespan starts and stops the scheduler and the maintenance.

    Call ``app.state.context.stop`` when the server must stop: it ends open event streams and plans.
    """
    installed = _installed_version()
    metrics = Metrics(services, installed)
    bounds = settings.query_timeout_s, settings.query_memory, settings.query_max_rows
    sandbox = Sandbox(services.sql_tables, *bounds, on_wait=metrics.query_waits.observe)
    metrics.watch_queries(sandbox.queue.lengths)
    importer = CheckpointImporter(settings.data_dir, services.store.root)
    context = Context(services, sandbox, metrics, importer)
    metrics.watch_followers(lambda: context.log_followers.open)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        await run_in_threadpool(services.scheduler.start)
        await run_in_threadpool(services.plans.start)
        services.calibrations.start(lambda: services.scheduler.problem() is None)
        services.maintenance.start()
        sandbox.start()
        try:
            yield
        finally:
            context.stop()
            await run_in_threadpool(services.calibrations.stop)
            await run_in_threadpool(sandbox.close)
            await run_in_threadpool(services.scheduler.stop, settings.grace_s)
            await run_in_threadpool(services.maintenance.stop)

    app = Api(
        title="CreditGrid",
        description=DESCRIPTION,
        version=installed,
        lifespan=lifespan,
        redirect_slashes=False,
        responses={"default": PROBLEM},
        middleware=[
            Middleware(RequestMiddleware, durations=context.metrics.requests),
            Middleware(AuthMiddleware, token=settings.token, tokens=services.tokens, audit=services.audit),
            Middleware(BodyLimitMiddleware, uploads={PROTECTED + checkpoints.PATH: MAX_CHECKPOINT_BYTES}),
        ],
    )
    app.state.context = context
    problems.add_error_handlers(app)
    # AuthMiddleware checks the token; this only shows in /docs where it goes.
    bearer = [Depends(HTTPBearer(auto_error=False))]
    for module in (
        sweeps,
        submissions,
        tasks,
        logs,
        events,
        plans,
        results,
        experiments,
        artifacts,
        checkpoints,
        code,
        tokens,
        audit,
    ):
        app.include_router(module.router, dependencies=bearer)
    app.include_router(health.router)
    return app


def _installed_version() -> str:
    try:
        return version("creditgrid")
    except PackageNotFoundError:  # the source tree is not installed
        return "unknown"
