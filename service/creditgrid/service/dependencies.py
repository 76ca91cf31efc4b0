"""What routes are given: the parts of the service, and limits that they share."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, cast

from anyio import CapacityLimiter
from fastapi import Depends, Request

if TYPE_CHECKING:
    from creditgrid.service.control import Control
    from creditgrid.service.maintenance import Maintenance
    from creditgrid.service.planning import Planner
    from creditgrid.service.results import Results
    from creditgrid.service.retention import Retention
    from creditgrid.service.sandbox import Sandbox
    from creditgrid.service.scheduler import Scheduler
    from creditgrid.service.telemetry import Telemetry
    from creditgrid.service.views import Views
    from creditgrid.workers.artifacts import ArtifactStore

QUERY_THREADS = 8
"""Queries that hold a thread, running or waiting their turn; more of them wait without one."""


@dataclass(frozen=True)
class Services:
    """The parts that the HTTP front end stands on. All are thread-safe and synchronous."""

    scheduler: Scheduler
    control: Control
    planner: Planner
    views: Views
    results: Results
    store: ArtifactStore
    retention: Retention
    maintenance: Maintenance


@dataclass(frozen=True)
class Context:
    """One app's parts and what its requests share. ``stopping`` is set when open streams should end."""

    services: Services
    sandbox: Sandbox
    telemetry: Telemetry
    stopping: threading.Event
    query_threads: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(QUERY_THREADS))


def context(request: Request) -> Context:
    """The app's context."""
    return cast(Context, request.app.state.context)


def services(request: Request) -> Services:
    """The app's services."""
    return context(request).services


ContextDep = Annotated[Context, Depends(context)]
ServicesDep = Annotated[Services, Depends(services)]
