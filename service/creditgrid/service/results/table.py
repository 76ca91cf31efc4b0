"""The results table: the rows of all cells, partitioned by experiment."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.dataset as pads

from creditgrid.core.experiments.registry import registry
from creditgrid.core.rows import common_schema
from creditgrid.core.rows import schema as experiment_schema
from creditgrid.service.results.delta_table import AppendedTable


class Results(AppendedTable):
    """The table of rows; the ledger numbers its batches."""

    partition = "experiment"
    advice = (
        "move it and the ledger away and submit the sweeps again: the artifacts are used again, and the cells are "
        "measured again"
    )

    def schema(self) -> pa.Schema:
        """The columns of all installed experiments, for a table without rows."""
        fields: dict[str, pa.Field] = {}
        for experiment in registry().experiments.values():
            for field in experiment_schema(experiment):
                fields.setdefault(field.name, field)
        return pa.schema(list(fields.values()))

    def shown(self, stored: pa.Schema) -> pa.Schema:
        """All rows may be from before a column of every experiment was introduced."""
        return pa.schema([*stored, *(field for field in common_schema() if field.name not in stored.names)])

    def misfit(self, rows: pa.Schema) -> str | None:
        """Why rows of this schema do not fit: the table has a column with another type. None if they fit.

        A plugin can change its types after rows were written, and two plugins can use one name.
        """
        stored = self.columns()
        types = dict(zip(stored.names, stored.types, strict=True))
        for column in rows:
            if (kept := types.get(column.name, column.type)) != column.type:
                return f"the column {column.name!r} is {column.type} here and {kept} in the stored rows: rename it"
        return None

    def diverged(self, cells: Sequence[str]) -> list[str]:
        """Those of the cells that have a row with a number that is not finite."""
        dataset = self.dataset() if cells else None
        if dataset is None:
            return []
        wanted = pads.field("diverged") & pads.field("cell").isin(list(cells))
        return sorted(set(dataset.to_table(columns=["cell"], filter=wanted)["cell"].to_pylist()))
