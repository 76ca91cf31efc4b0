"""Prometheus metrics, in a registry of their own for each app. Labels are route templates and states, never ids."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import prometheus_client as prometheus
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from creditgrid.core.states import OPEN, State
from creditgrid.service.services import Services


class Metrics:
    """The app's metrics."""

    def __init__(self, services: Services, version: str) -> None:
        self.registry = prometheus.CollectorRegistry()
        self.requests = prometheus.Histogram(
            "creditgrid_http_request_seconds",
            "Time to answer a request; for a stream, until its end.",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self.queries = prometheus.Histogram(
            "creditgrid_query_seconds", "Time of a SQL query.", ["outcome"], registry=self.registry
        )
        self.query_waits = prometheus.Histogram(
            "creditgrid_query_wait_seconds", "Time that a SQL query waited for its turn.", registry=self.registry
        )
        build = prometheus.Info("creditgrid_build", "The version of the service.", registry=self.registry)
        build.info({"version": version})
        self.registry.register(_ServiceCollector(services))

    def watch_queries(self, lengths: Callable[[], Mapping[str, int]]) -> None:
        """Show how many queries there are, by what they do."""
        gauge = prometheus.Gauge(
            "creditgrid_queries", "SQL queries, by what they do.", ["state"], registry=self.registry
        )
        gauge.labels("running").set_function(lambda: lengths()["running"])
        gauge.labels("waiting").set_function(lambda: lengths()["waiting"])

    def watch_followers(self, number: Callable[[], float]) -> None:
        """Show how many logs are followed."""
        gauge = prometheus.Gauge("creditgrid_logs_followed", "Open streams of logs.", registry=self.registry)
        gauge.set_function(number)

    def exposition(self) -> tuple[bytes, str]:
        """The metrics in Prometheus' text format, and its content type."""
        return prometheus.generate_latest(self.registry), prometheus.CONTENT_TYPE_LATEST


class _ServiceCollector(Collector):
    """The state of the service, read at each scrape."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def describe(self) -> Iterator[GaugeMetricFamily]:
        return iter(())  # otherwise the registry would collect once to learn the names

    def collect(self) -> Iterator[Metric]:
        sweeps, cells = self._services.sweeps.open_totals()
        yield _by_state("creditgrid_open_sweeps", "Sweeps that have not ended, by state.", sweeps, OPEN)
        yield _by_state(
            "creditgrid_open_sweep_cells", "Cells of sweeps that have not ended, by state.", cells, tuple(State)
        )
        calls = len(self._services.scheduler.activities())
        yield GaugeMetricFamily("creditgrid_calls_running", "Calls that are running.", value=calls)
        capacity = self._services.scheduler.capacity()
        for name, value in (("cpus", capacity.cpu), ("gpus", capacity.gpu), ("nodes", capacity.nodes)):
            yield GaugeMetricFamily(f"creditgrid_runner_{name}", f"The runner's {name}.", value=value)
        ready = self._services.scheduler.problem() is None
        yield GaugeMetricFamily(
            "creditgrid_artifacts_corrupt",
            "Artifacts that were found corrupt, were set aside, and have not been removed since.",
            value=len(self._services.store.corrupt()),
        )
        yield _maintenance(self._services.maintenance.counts())
        yield GaugeMetricFamily("creditgrid_ready", "1 while sweeps advance, otherwise 0.", value=float(ready))


def _by_state(name: str, text: str, counts: Mapping[State, int], states: tuple[State, ...]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=["state"])
    for state in states:
        family.add_metric([state.value], counts.get(state, 0))
    return family


def _maintenance(counts: Mapping[str, tuple[int, int]]) -> CounterMetricFamily:
    text = "Background maintenance of results and artifacts: runs of each duty, done and failed."
    family = CounterMetricFamily("creditgrid_maintenance", text, labels=["duty", "outcome"])
    for duty, (done, failed) in counts.items():
        family.add_metric([duty, "done"], done)
        family.add_metric([duty, "failed"], failed)
    return family
