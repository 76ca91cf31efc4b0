"""The HTTP application: parts, routes and middleware put together."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import Depends, FastAPI
from fastapi.security import HTTPBearer
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware

from creditgrid.core.wire import MAX_CHECKPOINT_BYTES, Problem
from creditgrid.service.api import problems
from creditgrid.service.api.auth import PROTECTED, Guard
from creditgrid.service.api.checkpoint_import import Importer
from creditgrid.service.api.dependencies import Context
from creditgrid.service.api.metrics import Measure, Telemetry, installed_version
from creditgrid.service.api.problems import LastResort
from creditgrid.service.api.request_bodies import BodyLimit
from creditgrid.service.api.request_log import RequestLog
from creditgrid.service.api.routes import (
    artifacts,
    checkpoints,
    events,
    experiments,
    health,
    plans,
    results,
    retention,
    sweeps,
    tasks,
)
from creditgrid.service.reading.sql import Sandbox
from creditgrid.service.services import Services
from creditgrid.service.settings import Settings

DESCRIPTION = """Grids of credit-assignment experiments: submit a sweep, watch it, read its rows, ask SQL.

Errors are `application/problem+json` (RFC 9457). Lists are paged: pass `next` of a page as `cursor`."""

PROBLEM: dict[str, Any] = {
    "description": "What is wrong",
    "content": {problems.MEDIA_TYPE: {"schema": Problem.model_json_schema()}},
}


def create_app(services: Services, settings: Settings) -> FastAPI:
    """The application over these services; it starts and stops the scheduler with itself.

    ``app.state.context.stopping`` ends open event streams: set it when the server is asked to stop.
    """
    sandbox = Sandbox(services.sql_tables, settings.query_timeout_s, settings.query_memory, settings.query_max_rows)
    context = Context(services, sandbox, Telemetry(services), threading.Event())

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        await run_in_threadpool(services.scheduler.start)
        services.maintenance.start()
        try:
            yield
        finally:
            context.stopping.set()
            await run_in_threadpool(sandbox.close)
            await run_in_threadpool(services.scheduler.stop, settings.grace_s)
            await run_in_threadpool(services.maintenance.stop)

    app = FastAPI(
        title="CreditGrid",
        description=DESCRIPTION,
        version=installed_version(),
        lifespan=lifespan,
        redirect_slashes=False,
        responses={"default": PROBLEM},
        middleware=[
            Middleware(RequestLog),
            Middleware(Measure, telemetry=context.telemetry),
            Middleware(LastResort),
            Middleware(Guard, token=settings.token),
            Middleware(BodyLimit, uploads={PROTECTED + checkpoints.PATH: MAX_CHECKPOINT_BYTES}),
        ],
    )
    app.state.context = context
    app.state.importer = Importer(settings.data_dir, services.store.root)
    problems.install(app)
    # The guard decides; this only tells readers of /docs where the token goes.
    shown = [Depends(HTTPBearer(auto_error=False))]
    for module in (sweeps, tasks, events, plans, results, experiments, artifacts, checkpoints, retention):
        app.include_router(module.router, dependencies=shown)
    app.include_router(health.router)
    return app
