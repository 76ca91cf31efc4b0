"""An experiment's own summary of a sweep."""

from __future__ import annotations

from typing import Any

import pyarrow.compute as pc

from creditgrid.core.errors import PluginError
from creditgrid.core.experiments.registry import registry
from creditgrid.core.states import State
from creditgrid.core.wire import SummaryView
from creditgrid.service.reading.sql_tables import SqlTables
from creditgrid.service.reading.sweeps import Sweeps
from creditgrid.service.results.table import Results


class Summaries:
    """Reads from any thread."""

    def __init__(self, sweeps: Sweeps, results: Results, sql_tables: SqlTables) -> None:
        self._sweeps, self._results, self._tables = sweeps, results, sql_tables

    def of(self, sweep: str) -> SummaryView:
        """The experiment's own summary of the rows there are."""
        view = self._sweeps.get(sweep)
        experiment = registry().experiment(view.experiment)
        rows: list[dict[str, Any]] = []
        dataset = self._results.dataset()
        if dataset is not None:
            keys = self._tables.cell_index(sweep)["cell"]
            names = [*experiment.params.model_fields, *experiment.columns, "cell", "diverged"]
            present = [name for name in names if name in dataset.schema.names]
            of_experiment = pc.field("experiment") == view.experiment
            found = dataset.to_table(columns=present, filter=of_experiment)
            rows = found.filter(pc.is_in(found["cell"], value_set=keys.combine_chunks())).to_pylist()
        try:
            summary = experiment.summarise(rows)
        except Exception as error:
            raise PluginError(f"{experiment.name}: summarise() raised {type(error).__name__}: {error}") from error
        return SummaryView(
            sweep=sweep,
            title=summary.title,
            columns=list(summary.columns),
            rows=[dict(row) for row in summary.rows],
            verdicts=list(summary.verdicts),
            complete=sum(n for state, n in view.counts.items() if state in (State.SUCCEEDED, State.CACHED))
            == view.cells,
        )
