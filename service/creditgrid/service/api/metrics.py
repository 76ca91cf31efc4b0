"""Numbers for Prometheus, in a registry of each app's own. Labels are route templates and states, never ids."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version

import prometheus_client as prometheus
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from creditgrid.core.states import OPEN, State
from creditgrid.service.services import Services

METHODS = frozenset(["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
SWEEPS_COUNTED = 1000
"""Open sweeps whose cells a scrape adds up, at most, of each state."""


class Telemetry:
    """The app's metrics."""

    def __init__(self, services: Services) -> None:
        self.registry = prometheus.CollectorRegistry()
        self.requests = prometheus.Histogram(
            "creditgrid_http_request_seconds",
            "Time to answer a request; of a stream, until it ended.",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self.queries = prometheus.Histogram(
            "creditgrid_query_seconds", "Time of a SQL query.", ["outcome"], registry=self.registry
        )
        build = prometheus.Info("creditgrid_build", "What runs.", registry=self.registry)
        build.info({"version": installed_version()})
        self.registry.register(_State(services))

    def exposition(self) -> tuple[bytes, str]:
        """The metrics in Prometheus' text format, and its content type."""
        return prometheus.generate_latest(self.registry), prometheus.CONTENT_TYPE_LATEST


def installed_version() -> str:
    """CreditGrid's version."""
    try:
        return version("creditgrid")
    except PackageNotFoundError:  # run from a source tree that is not installed
        return "unknown"


class _State(Collector):
    """What the service is at, looked up when it is asked."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def describe(self) -> Iterator[GaugeMetricFamily]:
        return iter(())  # else the registry would look everything up to learn the names

    def collect(self) -> Iterator[Metric]:
        cells: Counter[State] = Counter()
        sweeps: Counter[State] = Counter()
        in_flight = 0
        for state in OPEN:
            views, _ = self._services.sweeps.page(state, None, SWEEPS_COUNTED)
            sweeps[state] += len(views)
            for view in views:
                cells.update(view.counts)
                in_flight += len(view.active)
        yield _by_state("creditgrid_open_sweeps", "Sweeps that have not ended, by state.", sweeps, OPEN)
        yield _by_state(
            "creditgrid_open_sweep_cells", "Cells of sweeps that have not ended, by state.", cells, tuple(State)
        )
        yield GaugeMetricFamily("creditgrid_calls_running", "Calls that a process works on.", value=in_flight)
        capacity = self._services.scheduler.capacity()
        for name, value in (("cpus", capacity.cpu), ("gpus", capacity.gpu), ("nodes", capacity.nodes)):
            yield GaugeMetricFamily(f"creditgrid_runner_{name}", f"The runner's {name}.", value=value)
        ready = self._services.scheduler.problem() is None
        yield GaugeMetricFamily(
            "creditgrid_artifacts_corrupt",
            "Artifacts that were found corrupt, were set aside, and have not been removed since.",
            value=len(self._services.store.corrupt()),
        )
        yield _upkeep(self._services.maintenance.counts())
        yield GaugeMetricFamily("creditgrid_ready", "1 while sweeps advance, else 0.", value=float(ready))


def _by_state(name: str, text: str, counts: Counter[State], states: tuple[State, ...]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=["state"])
    for state in states:
        family.add_metric([state.value], counts[state])
    return family


def _upkeep(counts: Mapping[str, tuple[int, int]]) -> CounterMetricFamily:
    text = "Upkeep of results and artifacts in the background: how often each duty was done, and how often it failed."
    family = CounterMetricFamily("creditgrid_maintenance", text, labels=["duty", "outcome"])
    for duty, (done, failed) in counts.items():
        family.add_metric([duty, "done"], done)
        family.add_metric([duty, "failed"], failed)
    return family


class Measure:
    """ASGI middleware: times each request under its route's template."""

    def __init__(self, app: ASGIApp, telemetry: Telemetry) -> None:
        self._app, self._requests = app, telemetry.requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        status = "none"

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            method = scope["method"] if scope["method"] in METHODS else "other"
            route = getattr(scope.get("route"), "path", "none")
            self._requests.labels(method, route, status).observe(time.perf_counter() - began)
