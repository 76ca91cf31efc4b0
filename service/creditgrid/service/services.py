"""The parts of a running service that the HTTP API uses, made from its settings."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import sqlalchemy as sa

from creditgrid.core.datasets import resolve
from creditgrid.core.experiments.code_registry import registry_of
from creditgrid.core.experiments.registry import Registry
from creditgrid.core.units.code import Files, sha256_of
from creditgrid.service.codes import Codes, read_code
from creditgrid.service.control import Control
from creditgrid.service.ledger.changes import Changes
from creditgrid.service.ledger.engine import parse_url
from creditgrid.service.ledger.ledger import Ledger
from creditgrid.service.maintenance import Maintenance
from creditgrid.service.people.actor import UNLIMITED, Limits
from creditgrid.service.people.audit import Audit
from creditgrid.service.people.tokens import Tokens
from creditgrid.service.planning.admission import Admission
from creditgrid.service.planning.naming import Namer, Naming, NamingRequest, Resolve, name
from creditgrid.service.planning.naming_process import NamingProcesses, start_fork_server
from creditgrid.service.planning.planner import Planner
from creditgrid.service.planning.plans import Check, Plans
from creditgrid.service.prediction.calibration import LONGEST_S as CALIBRATION_LONGEST_S
from creditgrid.service.prediction.calibration import Calibrations, usual_file
from creditgrid.service.prediction.forecast import Forecasts
from creditgrid.service.prediction.throughput import Throughput
from creditgrid.service.reading.failures import Failures
from creditgrid.service.reading.logs import Logs
from creditgrid.service.reading.rows import Rows
from creditgrid.service.reading.sql_tables import SqlTables
from creditgrid.service.reading.summary import Summaries
from creditgrid.service.reading.sweeps import Sweeps
from creditgrid.service.reading.tasks import Cells, Tasks
from creditgrid.service.results.consistency import check_ledger
from creditgrid.service.results.curves import Curves
from creditgrid.service.results.table import Results
from creditgrid.service.results.upkeep import Upkeep
from creditgrid.service.retention import Retention
from creditgrid.service.scheduling.scheduler import Scheduler
from creditgrid.service.settings import Settings
from creditgrid.workers.artifacts import ArtifactStore
from creditgrid.workers.runner import Capacity, Runner


@dataclass(frozen=True)
class Services:
    """All parts are thread-safe and synchronous."""

    changes: Changes
    scheduler: Scheduler
    control: Control
    plans: Plans
    sweeps: Sweeps
    cells: Cells
    tasks: Tasks
    failures: Failures
    logs: Logs
    rows: Rows
    summaries: Summaries
    sql_tables: SqlTables
    store: ArtifactStore
    retention: Retention
    maintenance: Maintenance
    tokens: Tokens
    audit: Audit
    calibrations: Calibrations
    codes: Codes
    admission: Admission


def create_services(settings: Settings) -> Services:
    """All parts over the data directory, which is created if missing. Starts nothing.

    Raises:
        ConflictError: another service schedules over the ledger.
        CreditGridError: the ledger or the results are damaged, do not belong together, or cannot be reached.
    """
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    store = _store(settings)
    ledger = Ledger(_ledger_url(settings), lock=True)
    try:
        results = Results(settings.data_dir.absolute() / "results", ledger.identity())
        results.repair()
        check_ledger(results, ledger)
        curves = Curves(settings.data_dir.absolute() / "curves", ledger.identity())
        curves.repair()
        start_fork_server(with_torch=settings.allow_code)
        codes = Codes(store, allowed=settings.allow_code)
        names = NamingProcesses(_resolve(settings), partial(read_code, store.root, allowed=settings.allow_code)).name
        runner = _runner(settings, store)
        return wire_services(ledger, results, curves, store, runner, namer=names, limits=_limits(settings), codes=codes)
    except BaseException:
        ledger.close()
        raise


def wire_services(
    ledger: Ledger,
    results: Results,
    curves: Curves,
    store: ArtifactStore,
    runner: Runner,
    *,
    namer: Namer | None = None,
    limits: Limits = UNLIMITED,
    codes: Codes | None = None,
) -> Services:
    """The parts of a service over a ledger, results, curves, artifacts and a runner.

    Args:
        namer: names the cells of specs; the default does it in the calling thread.
        limits: those of people.
        codes: the code that the service has; the default takes no more.
    """
    codes = codes or Codes(store, allowed=False)
    tokens, audit = Tokens(ledger, limits), Audit(ledger)
    calibrations = Calibrations(usual_file())
    forecasts = Forecasts(Throughput(calibrations.of), calibrations, runner.capacity)
    planner = Planner(ledger, store, namer or _names_here(codes), forecasts)
    scheduler = Scheduler(ledger, results, curves, store, runner)
    plans = Plans(ledger, planner)
    control = Control(ledger, plans, results, scheduler, codes)
    retention = Retention(ledger, store, plans.writing)
    sweeps, sql_tables = Sweeps(ledger, scheduler, forecasts, codes), SqlTables(ledger, results, curves)
    rows, logs = Rows(sweeps, sql_tables, results, codes), Logs(ledger, store.root)
    return Services(
        changes=ledger.changes,
        scheduler=scheduler,
        control=control,
        plans=plans,
        sweeps=sweeps,
        cells=Cells(ledger),
        tasks=Tasks(ledger),
        failures=Failures(ledger, logs),
        logs=logs,
        rows=rows,
        summaries=Summaries(sweeps, rows, codes),
        sql_tables=sql_tables,
        store=store,
        retention=retention,
        maintenance=Maintenance(
            {"": Upkeep(results), " curves": Upkeep(curves)},
            retention,
            {"tokens": tokens.flush, "audit": audit.flush},
        ),
        tokens=tokens,
        audit=audit,
        calibrations=calibrations,
        codes=codes,
        admission=Admission(codes, store),
    )


def create_planner(settings: Settings, code: Files | None = None) -> Planner:
    """A planner without a service. A missing data directory is not created; it counts as empty.

    Args:
        code: files that the spec may bring besides those of the data directory.
    """
    url = _ledger_url(settings)
    exists = url.get_backend_name() != "sqlite" or (url.database is not None and Path(url.database).exists())
    resolved = _resolve(settings)
    ledger = Ledger(url) if exists else None
    calibrations = Calibrations(usual_file())
    calibrations.start()
    here = Capacity(float(settings.cpus or os.cpu_count() or 1), float(settings.gpus or 0), 1)
    forecasts = Forecasts(Throughput(calibrations.of), calibrations, lambda: here)
    store = _store(settings)
    codes = Codes(store, allowed=True)  # whoever plans here executes their own code
    own = {} if code is None else {sha256_of(code): code}

    def bring(sha256: str) -> Registry:
        return registry_of(own.get(sha256) or codes.read(sha256), sha256)

    return Planner(
        ledger,
        store,
        lambda request, _: name(request, resolved, bring),
        forecasts,
        wait_s=CALIBRATION_LONGEST_S,
    )


def _names_here(codes: Codes) -> Namer:
    """Names cells in the calling thread."""

    def names(request: NamingRequest, _: Check) -> Naming:
        return name(request, resolve, lambda sha256: registry_of(codes.read(sha256), sha256))

    return names


def _resolve(settings: Settings) -> Resolve:
    """Opens the datasets that the settings allow; it can be pickled."""
    return partial(resolve, roots=settings.dataset_folders())


def _limits(settings: Settings) -> Limits:
    return Limits(settings.max_open_cells, settings.max_priority)


def _store(settings: Settings) -> ArtifactStore:
    return ArtifactStore(settings.data_dir.absolute() / "artifacts")


def _ledger_url(settings: Settings) -> sa.URL:
    if settings.database_url is not None:
        return parse_url(settings.database_url.get_secret_value())
    return sa.URL.create("sqlite", database=str(settings.data_dir.absolute() / "ledger.sqlite"))


def _runner(settings: Settings, store: ArtifactStore) -> Runner:
    # Lazy imports: the local runner computes in this process and imports torch; with the Ray runner nothing here does.
    if settings.runner == "local":
        from creditgrid.workers.local_runner import LocalRunner

        return LocalRunner(store)
    from creditgrid.workers.ray.runner import RayRunner

    log = settings.data_dir.absolute() / "ray.log"
    return RayRunner(store, log, settings.ray_address, settings.cpus, settings.gpus)
