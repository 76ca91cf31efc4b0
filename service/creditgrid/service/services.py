"""The parts of a running service that the HTTP API uses."""

from __future__ import annotations

from dataclasses import dataclass

from creditgrid.service.control import Control
from creditgrid.service.maintenance import Maintenance
from creditgrid.service.planning.planner import Planner
from creditgrid.service.reading.cells import Cells
from creditgrid.service.reading.failures import Failures
from creditgrid.service.reading.rows import Rows
from creditgrid.service.reading.sql_tables import SqlTables
from creditgrid.service.reading.summary import Summaries
from creditgrid.service.reading.sweeps import Sweeps
from creditgrid.service.reading.tasks import Tasks
from creditgrid.service.retention import Retention
from creditgrid.service.scheduling.scheduler import Scheduler
from creditgrid.workers.artifacts import ArtifactStore


@dataclass(frozen=True)
class Services:
    """All parts are thread-safe and synchronous."""

    scheduler: Scheduler
    control: Control
    planner: Planner
    sweeps: Sweeps
    cells: Cells
    tasks: Tasks
    failures: Failures
    rows: Rows
    summaries: Summaries
    sql_tables: SqlTables
    store: ArtifactStore
    retention: Retention
    maintenance: Maintenance
