"""An experiment's own summary of a sweep."""

from __future__ import annotations

from creditgrid.core.errors import PluginError
from creditgrid.core.states import State
from creditgrid.core.wire import SummaryView
from creditgrid.service.codes import Codes
from creditgrid.service.reading.rows import Rows
from creditgrid.service.reading.sweeps import Sweeps, measuring


class Summaries:
    """Reads from any thread."""

    def __init__(self, sweeps: Sweeps, rows: Rows, codes: Codes) -> None:
        self._sweeps, self._rows, self._codes = sweeps, rows, codes

    def of(self, sweep: str) -> SummaryView:
        """The summary of the rows that the sweep has so far.

        Raises:
            NotFoundError: for an unknown sweep.
            PluginError: the experiment or a measurement is not installed, its ``summarise`` raises, or the sweep's code
                is gone.
        """
        view = self._sweeps.get(sweep)
        try:
            experiment = measuring(self._codes, view)
        except ValueError as error:
            raise PluginError(str(error)) from error
        columns = [*experiment.params.model_fields, *experiment.columns, "cell", "diverged"]
        rows = [row for batch in self._rows.of(sweep, columns) for row in batch.to_pylist()]
        try:
            summary = experiment.summarise(rows)
        except Exception as error:
            raise PluginError(f"{experiment.name}: summarise() raised {type(error).__name__}: {error}") from error
        done = view.counts.get(State.SUCCEEDED, 0) + view.counts.get(State.CACHED, 0)
        return SummaryView(
            sweep=sweep,
            title=summary.title,
            columns=list(summary.columns),
            rows=[dict(row) for row in summary.rows],
            verdicts=list(summary.verdicts),
            complete=done == view.cells,
        )
