"""The parts of a running service, as the HTTP front end uses them."""

from __future__ import annotations

from dataclasses import dataclass

from creditgrid.service.control import Control
from creditgrid.service.maintenance import Maintenance
from creditgrid.service.planning.planner import Planner
from creditgrid.service.reading.views import Views
from creditgrid.service.results.table import Results
from creditgrid.service.retention import Retention
from creditgrid.service.scheduling.scheduler import Scheduler
from creditgrid.workers.artifacts import ArtifactStore


@dataclass(frozen=True)
class Services:
    """All parts are thread-safe and synchronous."""

    scheduler: Scheduler
    control: Control
    planner: Planner
    views: Views
    results: Results
    store: ArtifactStore
    retention: Retention
    maintenance: Maintenance
