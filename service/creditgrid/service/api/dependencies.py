"""What routes depend on: the parts of the service, and limits that requests share."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, cast

from anyio import CapacityLimiter
from fastapi import Depends, Request

from creditgrid.service.api.checkpoint_import import CheckpointImporter
from creditgrid.service.api.listeners import Listeners
from creditgrid.service.api.log_followers import LogFollowers
from creditgrid.service.api.metrics import Metrics
from creditgrid.service.api.planning import PlanningThreads
from creditgrid.service.api.shared_reads import SLOW_LIVE_S, SLOW_SHARE, SLOW_THREADS, SharedReads
from creditgrid.service.people.actor import Actor
from creditgrid.service.reading.sql import Sandbox
from creditgrid.service.services import Services

LOG_LISTS_LIVE_S = 1.0
"""How old a list of logs may be."""


@dataclass(frozen=True)
class Context:
    """The parts of one app, which its requests share. ``stopping`` is set when open streams must end."""

    services: Services
    sandbox: Sandbox
    metrics: Metrics
    importer: CheckpointImporter
    stopping: threading.Event = field(default_factory=threading.Event)
    metrics_thread: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(1))
    planning: PlanningThreads = field(default_factory=PlanningThreads)
    log_followers: LogFollowers = field(default_factory=LogFollowers)

    def stop(self) -> None:
        """End what would outlast the server: event streams and plans."""
        self.stopping.set()
        self.services.plans.stop()

    @cached_property
    def reads(self) -> SharedReads:
        """Statuses, lists and events."""
        return SharedReads(self.services.changes)

    @cached_property
    def slow_reads(self) -> SharedReads:
        """Summaries and failures."""
        return SharedReads(self.services.changes, SLOW_THREADS, SLOW_LIVE_S, SLOW_SHARE)

    @cached_property
    def log_lists(self) -> SharedReads:
        """Lists of logs, to which tasks add without a change of the ledger."""
        return SharedReads(self.services.changes, 1, LOG_LISTS_LIVE_S, SLOW_SHARE)

    @cached_property
    def listeners(self) -> Listeners:
        """The open event streams."""
        return Listeners(self.services.changes, self.stopping)


# Coroutines, because FastAPI calls a plain function of this kind in a thread, at each request.
async def context(request: Request) -> Context:
    """The app's context."""
    return cast(Context, request.app.state.context)


async def services(request: Request) -> Services:
    """The app's services."""
    return (await context(request)).services


async def actor(request: Request) -> Actor:
    """Who makes the request, as ``AuthMiddleware`` found."""
    return cast(Actor, request.state.actor)


ContextDep = Annotated[Context, Depends(context)]
ServicesDep = Annotated[Services, Depends(services)]
ActorDep = Annotated[Actor, Depends(actor)]
