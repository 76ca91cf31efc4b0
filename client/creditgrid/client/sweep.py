"""A sweep on a service: its state, its rows, its failures, and the requests that change it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel

from creditgrid.client.connection import Connection, read, resource
from creditgrid.client.errors import BadSetting, Conflict, SweepFailed
from creditgrid.client.events import EventStream
from creditgrid.client.logs import SweepLogs
from creditgrid.client.result import Result
from creditgrid.client.spec import spec_document
from creditgrid.client.watch import Update, updates
from creditgrid.core.states import State
from creditgrid.core.wire import (
    MEDIA_TYPES,
    CellView,
    EventView,
    ExperimentView,
    FailureView,
    LogView,
    Page,
    SummaryView,
    SweepView,
    TaskView,
)

if TYPE_CHECKING:
    import altair as alt

    from creditgrid.client.plots import ImageFormat

Item = TypeVar("Item", bound=BaseModel)
UNCHANGED = "unchanged"
"""The condition of a sweep after a request that changed nothing."""
PAGE = 100
"""Items in one request."""


class Sweep:
    """A sweep; ``view`` is its latest known view, ``refresh()`` requests it again."""

    def __init__(self, connection: Connection, view: SweepView) -> None:
        self.connection = connection
        self.view = view
        self._path = resource("sweeps", view.id)

    def __repr__(self) -> str:
        return f"Sweep({self.id!r}, {self.view.name!r}, {self.state})"

    @property
    def id(self) -> str:
        return self.view.id

    @property
    def state(self) -> State:
        """The state in the latest known view."""
        return self.view.state

    def refresh(self) -> SweepView:
        """Request the sweep's view."""
        self.view = self.connection.get(SweepView, "sweeps", self.id)
        return self.view

    @property
    def unchanged(self) -> str | None:
        """Why the last request changed nothing; None if it changed something."""
        return next((found.message for found in self.view.conditions if found.type == UNCHANGED), None)

    def updates(self, timeout: float | None = None, patient: bool = True) -> Iterator[Update]:
        """The view with the new events, again and again until the sweep is finished; see ``watch.updates``."""
        for update in updates(self.connection, self.view, timeout, patient):
            self.view = update.view
            yield update

    def wait(self, progress: bool = False, timeout: float | None = None, raise_on_failure: bool = True) -> Sweep:
        """Wait until the sweep is finished, and return it.

        Args:
            progress: show progress on standard error: live bars on a terminal, otherwise a line now and then.
            timeout: seconds after which to stop waiting; the sweep continues.
            raise_on_failure: whether a failed sweep is an error.

        Raises:
            SweepFailed: if it failed.
            WaitTimeout: if it is not finished in time.
        """
        if progress:
            from creditgrid.client.display.progress import show  # imported here because it needs Rich

            show(self.view, self.updates(timeout), self.connection.url)
        else:
            for _ in self.updates(timeout):
                pass
        if raise_on_failure and self.state == State.FAILED:
            raise SweepFailed(self.view, self.failures())
        return self

    def results(self) -> Result:
        """The rows so far: one per cell, or more with a layer or epoch column."""
        headers = {"Accept": MEDIA_TYPES["arrow"]}
        answer = self.connection.request("GET", f"{self._path}/results", headers=headers, computing=True)
        return Result.from_stream(answer.content)

    def curves(self) -> Result:
        """What each training, fit or other run of the sweep has measured so far: a row for each epoch.

        ``run`` names the run, ``epoch`` the epoch; a metric that a run did not measure is null.
        """
        headers = {"Accept": MEDIA_TYPES["arrow"]}
        answer = self.connection.request("GET", f"{self._path}/curves", headers=headers, computing=True)
        return Result.from_stream(answer.content)

    def export_curves(self, path: str | Path, format: str | None = None) -> Path:
        """Write the curves to a file, as ``export`` writes the rows."""
        return self._download("curves", path, format)

    def export(self, path: str | Path, format: str | None = None) -> Path:
        """Write the rows to a file, which appears when it is complete.

        Args:
            path: the file.
            format: arrow (IPC stream), parquet, csv or json; default: the file's ending.

        Raises:
            BadSetting: for another format.
        """
        return self._download("results", path, format)

    def _download(self, what: str, path: str | Path, format: str | None) -> Path:
        path = Path(path)
        accept = MEDIA_TYPES[file_format(path, format)]
        self.connection.download(f"{self._path}/{what}", path, accept=accept)
        return path

    def charts(self, name: str | None = None, fix: Mapping[str, Any] | None = None) -> dict[str, alt.VConcatChart]:
        """The charts of the sweep's experiment by name, drawn from the rows so far, and its ``curves`` over the epochs.

        Args:
            name: of the only chart to draw; default: all charts.
            fix: parameter → its only value to show, for charts with too many panels.

        Raises:
            BadSetting: if there is nothing to draw, no such chart or value, or more panels than a page holds.
            PackageMissing: if Altair is not installed.
        """
        from creditgrid.client.plots.charts import all_charts

        experiment = self.connection.get(ExperimentView, "experiments", self.view.experiment)
        return all_charts(
            experiment,
            lambda: self.results().to_pylist(),
            lambda: self.curves().to_pylist(),
            name=name,
            fix=fix,
        )

    def plot(
        self,
        folder: str | Path | None = None,
        format: ImageFormat = "png",
        name: str | None = None,
        fix: Mapping[str, Any] | None = None,
    ) -> list[Path]:
        """Write the charts to files ``folder/{sweep}-{chart}.{format}``, which appear when they are complete.

        Args:
            folder: created if it does not exist; default: the current one.
            format: png, svg, pdf, or html, which works without a network.
            name, fix: as for ``charts``, which also says what may be raised.

        Raises:
            BadSetting: for another format.
        """
        from creditgrid.client.plots.charts import check_format, file_name, write

        check_format(format)
        drawn = self.charts(name, fix)
        folder = Path(folder or ".")
        folder.mkdir(parents=True, exist_ok=True)
        return [
            write(chart, folder / f"{file_name(self.id, found)}.{format}", format) for found, chart in drawn.items()
        ]

    def summary(self) -> SummaryView:
        """The best settings, the verdicts, and the numbers that they are based on."""
        return self.connection.get(SummaryView, "sweeps", self.id, "summary", computing=True)

    def cells(self, state: State | str | None = None) -> Iterator[CellView]:
        """The cells, in order; if given, only those in ``state``. Fetched page by page."""
        return pages(self.connection, f"{self._path}/cells", CellView, state=state)

    def tasks(self, state: State | str | None = None) -> Iterator[TaskView]:
        """The stage tasks that the cells need. Fetched page by page."""
        return pages(self.connection, f"{self._path}/tasks", TaskView, state=state)

    def failures(self) -> list[FailureView]:
        """Failures grouped by cause, with tracebacks."""
        return self.connection.get(Page[FailureView], "sweeps", self.id, "failures").items

    def logs(self) -> Iterator[tuple[LogView, str]]:
        """What the sweep's calls have printed: of those that did so last, in that order, the end of their logs."""
        return SweepLogs(self.connection, self.id).new()

    def events(self, since: int | None = None) -> Iterator[EventView]:
        """Events as they happen, each once, until the sweep is finished; a lost connection is restored.

        Args:
            since: the id of the last event that is already known; default: all events.
        """
        return EventStream(self.connection, self.id, since).follow()

    def history(self) -> Iterator[EventView]:
        """The events until now."""
        return EventStream(self.connection, self.id).history()

    def cancel(self) -> Sweep:
        """Stop the running calls and cancel the waiting ones; finished cells keep their results.

        If nothing changes, for example because the sweep is cancelled already, ``unchanged`` says why; so for the
        methods below.

        Raises:
            Conflict: if the sweep is finished.
        """
        return self._change("cancel")

    def pause(self) -> Sweep:
        """Start no more calls of the sweep until it is resumed; running calls finish.

        Raises:
            Conflict: if the sweep is finished.
        """
        return self._change("pause")

    def resume(self) -> Sweep:
        """Continue after a pause.

        Raises:
            Conflict: if the sweep is finished.
        """
        return self._change("resume")

    def retry(self) -> Sweep:
        """Run failed and skipped cells again, and those that were not run because the sweep stopped at its failures.

        Raises:
            Conflict: if the sweep is not finished, or there is nothing to run again.
        """
        try:
            return self._change("retry")
        except Conflict as conflict:
            if conflict.tries == 1:
                raise
            self.refresh()  # an earlier try succeeded, but its answer was lost
            return self

    def extend(
        self, axes: Mapping[str, Any] | None = None, include: Sequence[Mapping[str, Any]] | None = None
    ) -> Sweep:
        """Add cells to the sweep, whether it is running or finished; its present cells do not change.

        Args:
            axes: axis of the sweep → more values, as a list or a generator as in a spec.
            include: more single cells, on top of the spec's ``fixed``.

        Raises:
            BadSetting: if both are empty.
            SpecError: for values that cannot be sent.
            InvalidRequest: if the service refuses it, with a pointer to each fault.
            Conflict: if the sweep was cancelled.
        """
        more = spec_document({"axes": axes or {}, "include": include or []})
        if not more["axes"] and not more["include"]:
            raise BadSetting("there is nothing to add: give values for an axis, or cells to include")
        return self._change("extend", more)

    def _change(self, verb: str, body: Mapping[str, Any] | None = None) -> Sweep:
        answer = self.connection.request("POST", f"{self._path}/{verb}", json=body, computing=True)
        self.view = read(answer, SweepView)
        if answer.extensions["tries"] > 1:  # an earlier try, whose answer was lost, may have made the change
            conditions = [condition for condition in self.view.conditions if condition.type != UNCHANGED]
            self.view = self.view.model_copy(update={"conditions": conditions})
        return self


def pages(
    connection: Connection, path: str, model: type[Item], limit: int | None = None, **filters: str | None
) -> Iterator[Item]:
    """The items of a list that match the filters, fetched page by page; at most ``limit``."""
    cursor, left = None, limit
    while left is None or left > 0:
        params = {**filters, "cursor": cursor, "limit": None if left is None else min(left, PAGE)}
        page = read(connection.request("GET", path, params=params), Page[model])  # type: ignore[valid-type]
        yield from page.items[:left]
        left = None if left is None else left - len(page.items)
        cursor = page.next
        if cursor is None:
            return


def file_format(path: Path, format: str | None) -> str:
    """The format of a results file, by name or by the file's ending."""
    found = format or path.suffix.removeprefix(".").lower()
    if found not in MEDIA_TYPES:
        raise BadSetting(
            f"{found or 'no ending'!r} of {path} is not a format of results: use one of {', '.join(MEDIA_TYPES)}"
        )
    return found
