"""What routes are given: the parts of the service, and limits that they share."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Annotated, cast

from anyio import CapacityLimiter
from fastapi import Depends, Request

from creditgrid.service.api.metrics import Telemetry
from creditgrid.service.reading.sql import Sandbox
from creditgrid.service.services import Services

QUERY_THREADS = 8
"""Queries that hold a thread, running or waiting their turn; more of them wait without one."""


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
