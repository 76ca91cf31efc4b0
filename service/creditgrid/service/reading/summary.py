"""An experiment's own summary of a sweep."""

from __future__ import annotations

from creditgrid.core.errors import PluginError
from creditgrid.core.experiments.registry import registry
from creditgrid.core.states import State
from creditgrid.core.wire import SummaryView
from creditgrid.service.reading.rows import Rows
from creditgrid.service.reading.sweeps import Sweeps


class Summaries:
    """Reads from any thread."""

    def __init__(self, sweeps: Sweeps, rows: Rows) -> None:
        self._sweeps, self._rows = sweeps, rows

    def of(self, sweep: str) -> SummaryView:
        """The summary of the rows that the sweep has so far.

        Raises:
            NotFoundError: for an unknown sweep.
            PluginError: the experiment is not installed, or its ``summarise`` raises.
        """
        view = self._sweeps.get(sweep)
        experiment = registry().experiment(view.experiment)
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
