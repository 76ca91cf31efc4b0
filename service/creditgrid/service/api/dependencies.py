"""What routes depend on: the parts of the service, and limits that requests share."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, replace
from typing import Annotated, cast

from anyio import CapacityLimiter
from fastapi import Depends, Request

from creditgrid.service.api.checkpoint_import import CheckpointImporter
from creditgrid.service.api.metrics import Metrics
from creditgrid.service.people.actor import OPERATOR, Actor
from creditgrid.service.reading.sql import Sandbox
from creditgrid.service.services import Services

QUERY_THREADS = 8
"""Threads that serve queries; further queries wait without a thread."""


@dataclass(frozen=True)
class Context:
    """The parts of one app, which its requests share. ``stopping`` is set when open streams must end."""

    services: Services
    sandbox: Sandbox
    metrics: Metrics
    importer: CheckpointImporter
    stopping: threading.Event = field(default_factory=threading.Event)
    query_threads: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(QUERY_THREADS))


def context(request: Request) -> Context:
    """The app's context."""
    return cast(Context, request.app.state.context)


def services(request: Request) -> Services:
    """The app's services."""
    return context(request).services


async def actor(request: Request) -> Actor:
    """Who makes the request."""
    return replace(OPERATOR, request=request.state.request)


ContextDep = Annotated[Context, Depends(context)]
ServicesDep = Annotated[Services, Depends(services)]
ActorDep = Annotated[Actor, Depends(actor)]
