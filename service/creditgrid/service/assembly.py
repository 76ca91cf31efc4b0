"""Which parts make a service: the one place where settings become objects."""

from __future__ import annotations

from pathlib import Path

from creditgrid.core.datasets import resolve
from creditgrid.service.app import Services
from creditgrid.service.ledger import Ledger
from creditgrid.service.planning import Planner
from creditgrid.service.results import Results
from creditgrid.service.scheduler import Scheduler
from creditgrid.service.settings import Settings
from creditgrid.service.views import Views
from creditgrid.workers.artifacts import ArtifactStore
from creditgrid.workers.runner import Runner


def assemble(settings: Settings) -> Services:
    """All parts over the data directory, which is made if it is not there; nothing is started yet."""
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    store = _store(settings)
    ledger = Ledger(settings.database_url or _sqlite(settings))
    planner = Planner(ledger, store, resolve)
    results = Results(settings.data_dir.absolute() / "results", ledger.identity())
    scheduler = Scheduler(ledger, planner, results, _runner(settings, store))
    return Services(scheduler, planner, Views(ledger, results, scheduler), results, store)


def planner(settings: Settings) -> Planner:
    """A planner alone; a data directory that is not there is not made, and counts as empty."""
    there = settings.database_url is not None or _ledger_file(settings).exists()
    return Planner(Ledger(settings.database_url or _sqlite(settings)) if there else None, _store(settings), resolve)


def _store(settings: Settings) -> ArtifactStore:
    return ArtifactStore(settings.data_dir.absolute() / "artifacts")


def _ledger_file(settings: Settings) -> Path:
    return settings.data_dir.absolute() / "ledger.sqlite"


def _sqlite(settings: Settings) -> str:
    return f"sqlite:///{_ledger_file(settings)}"


def _runner(settings: Settings, store: ArtifactStore) -> Runner:
    # Imported where they are chosen: the Ray runner needs no torch in this process, the local one computes in it.
    if settings.runner == "local":
        from creditgrid.workers.local_runner import LocalRunner

        return LocalRunner(store)
    from creditgrid.workers.ray_runner import RayRunner

    log = settings.data_dir.absolute() / "ray.log"
    return RayRunner(store, log, settings.ray_address, settings.cpus, settings.gpus)
