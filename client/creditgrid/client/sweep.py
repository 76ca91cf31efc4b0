"""A sweep on a service: where it stands, its rows, its failures, and what can be done with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel

from creditgrid.client.connection import Connection, read, resource
from creditgrid.client.errors import BadSetting, Conflict, SweepFailed
from creditgrid.client.events import EventStream
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
    Page,
    SummaryView,
    SweepView,
    TaskView,
)

if TYPE_CHECKING:
    import altair as alt

    from creditgrid.client.plots.charts import ImageFormat

Item = TypeVar("Item", bound=BaseModel)
UNCHANGED = "unchanged"
"""The condition of a sweep after a request that changed nothing."""
PAGE = 100
"""Items asked for at once."""


class Sweep:
    """A sweep; ``view`` is what was last heard of it, ``refresh()`` asks again."""

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
        """Where the sweep stood when it was last asked."""
        return self.view.state

    def refresh(self) -> SweepView:
        """Ask where the sweep stands."""
        self.view = self.connection.get(SweepView, "sweeps", self.id)
        return self.view

    @property
    def unchanged(self) -> str | None:
        """Why what was last asked of the sweep changed nothing; None if it did."""
        return next((found.message for found in self.view.conditions if found.type == UNCHANGED), None)

    def updates(self, timeout: float | None = None, patient: bool = True) -> Iterator[Update]:
        """The view with the new events, again and again until the sweep is finished; see ``watch.updates``."""
        for update in updates(self.connection, self.view, timeout, patient):
            self.view = update.view
            yield update

    def wait(self, progress: bool = False, timeout: float | None = None, raise_on_failure: bool = True) -> Sweep:
        """Wait until the sweep is through, and return it.

        Args:
            progress: show it on standard error: live bars on a terminal, else a line now and then.
            timeout: seconds after which to give up waiting; the sweep goes on.
            raise_on_failure: whether a failed sweep is an error.

        Raises:
            SweepFailed: if it failed.
            WaitTimeout: if it is not through in time.
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
        """The rows that are there: one a cell, or more with a layer or epoch column."""
        headers = {"Accept": MEDIA_TYPES["arrow"]}
        answer = self.connection.request("GET", f"{self._path}/results", headers=headers, computing=True)
        return Result.from_stream(answer.content)

    def export(self, path: str | Path, format: str | None = None) -> Path:
        """Write the rows to a file, which appears when it is whole.

        Args:
            path: the file.
            format: arrow (IPC stream), parquet, csv or json; default: the file's ending.

        Raises:
            BadSetting: for another format.
        """
        path = Path(path)
        accept = MEDIA_TYPES[file_format(path, format)]
        self.connection.download(f"{self._path}/results", path, accept=accept)
        return path

    def charts(self, name: str | None = None, fix: Mapping[str, Any] | None = None) -> dict[str, alt.VConcatChart]:
        """What the sweep's experiment declares as its charts, by name, drawn from the rows that are there.

        Args:
            name: of the one chart to draw; default: all.
            fix: parameter → the one value to show of it, where a chart would have too many panels.

        Raises:
            BadSetting: if there is nothing to draw, no such chart or value, or more panels than a page holds.
            PackageMissing: if Altair is not installed.
        """
        from creditgrid.client.plots.charts import charts

        experiment = self.connection.get(ExperimentView, "experiments", self.view.experiment)
        return charts(experiment, self.results().to_pylist(), name=name, fix=fix)

    def plot(
        self,
        folder: str | Path | None = None,
        format: ImageFormat = "png",
        name: str | None = None,
        fix: Mapping[str, Any] | None = None,
    ) -> list[Path]:
        """Write the charts to files, which appear when they are whole: ``folder/{sweep}-{chart}.{format}``.

        Args:
            folder: made if it is not there; default: the current one.
            format: png, svg, pdf, or html, which needs no network to be looked at.
            name: of the one chart to write; default: all.
            fix: parameter → the one value to show of it, where a chart would have too many panels.

        Raises:
            BadSetting: if there is nothing to draw, no such chart, value or format, or more panels than a page holds.
            PackageMissing: if Altair is not installed.
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
        """The best settings, the verdicts, and the numbers they rest on."""
        return self.connection.get(SummaryView, "sweeps", self.id, "summary", computing=True)

    def cells(self, state: State | str | None = None) -> Iterator[CellView]:
        """The cells, in order; only those in one state if asked. Fetched page by page."""
        return pages(self.connection, f"{self._path}/cells", CellView, state)

    def tasks(self, state: State | str | None = None) -> Iterator[TaskView]:
        """The stage tasks below the cells. Fetched page by page."""
        return pages(self.connection, f"{self._path}/tasks", TaskView, state)

    def failures(self) -> list[FailureView]:
        """Failures grouped by cause, with traceback."""
        return self.connection.get(Page[FailureView], "sweeps", self.id, "failures").items

    def events(self, since: int | None = None) -> Iterator[EventView]:
        """Events as they happen, each once, until the sweep is through; lost connections are taken up again.

        Args:
            since: the id of the last event that is already known; default: from the beginning.
        """
        return EventStream(self.connection, self.id, since).follow()

    def history(self) -> Iterator[EventView]:
        """The events until now."""
        return EventStream(self.connection, self.id).history()

    def cancel(self) -> Sweep:
        """Stop what runs and forget what waits; what is finished stays.

        Where nothing was left to do, as for a sweep that is cancelled already, ``unchanged`` says so; so below.

        Raises:
            Conflict: if the sweep is through.
        """
        return self._ask("cancel")

    def pause(self) -> Sweep:
        """Begin nothing more of the sweep until it is resumed; what runs, ends.

        Raises:
            Conflict: if the sweep is through.
        """
        return self._ask("pause")

    def resume(self) -> Sweep:
        """Go on after a pause.

        Raises:
            Conflict: if the sweep is through.
        """
        return self._ask("resume")

    def retry(self) -> Sweep:
        """Run again what failed or was skipped, and what a sweep had not got to that stopped at its failures.

        Raises:
            Conflict: if the sweep is not through, or there is nothing to run again.
        """
        try:
            return self._ask("retry")
        except Conflict as conflict:
            if conflict.tries == 1:
                raise
            self.refresh()  # an earlier try did it, and its answer was lost
            return self

    def extend(
        self, axes: Mapping[str, Any] | None = None, include: Sequence[Mapping[str, Any]] | None = None
    ) -> Sweep:
        """Add cells to the sweep, whether it runs or is through; the cells that it has are not touched.

        Args:
            axes: parameter → further values, a list or a generator as in a spec; an axis of the sweep each.
            include: further single cells, on top of the spec's ``fixed``.

        Raises:
            BadSetting: if there is nothing in it.
            SpecError: for values that cannot be sent.
            InvalidRequest: for what the service refuses, with a pointer to each fault.
            Conflict: if the sweep was cancelled.
        """
        more = spec_document({"axes": axes or {}, "include": include or []})
        if not more["axes"] and not more["include"]:
            raise BadSetting("nothing to extend the sweep by: give values for an axis, or cells to include")
        return self._ask("extend", more)

    def _ask(self, verb: str, body: Mapping[str, Any] | None = None) -> Sweep:
        answer = self.connection.request("POST", f"{self._path}/{verb}", json=body, computing=True)
        self.view = read(answer, SweepView)
        if answer.extensions["tries"] > 1:  # then it may be an earlier try, its answer lost, that left nothing to do
            told = [condition for condition in self.view.conditions if condition.type != UNCHANGED]
            self.view = self.view.model_copy(update={"conditions": told})
        return self


def pages(
    connection: Connection, path: str, model: type[Item], state: State | str | None = None, limit: int | None = None
) -> Iterator[Item]:
    """The items of a list, fetched page by page; at most ``limit``."""
    cursor, left = None, limit
    while left is None or left > 0:
        params = {"state": state, "cursor": cursor, "limit": None if left is None else min(left, PAGE)}
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
            f"{found or 'no ending'!r} of {path} is no format of results: use one of {', '.join(MEDIA_TYPES)}"
        )
    return found
