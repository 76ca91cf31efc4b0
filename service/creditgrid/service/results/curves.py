"""The table of curves: a row for each epoch of a run, appended exactly once.

The table itself is the record. Before points are appended, the highest epoch that it holds for their run is known; the
points up to it are left out. So a worker may send a curve again from its start, as often as it likes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import structlog

from creditgrid.core.experiments.parameters import TRAIN_OPTIONS
from creditgrid.core.experiments.registry import registry
from creditgrid.core.experiments.stage_runs import METRICS
from creditgrid.core.units.known import installed
from creditgrid.service.results.delta_table import AppendedTable, data_files
from creditgrid.workers.runner import Point

LEADING = pa.schema(
    {
        "run": pa.string(),
        "stage": pa.string(),
        "kind": pa.string(),
        "kind_version": pa.int64(),
        "sweep": pa.string(),
        "epoch": pa.int64(),
    }
)
PROVENANCE = pa.schema(
    {
        "measured_at": pa.timestamp("us", tz="UTC"),
        "attempt": pa.int64(),
        "host": pa.string(),
        "device": pa.string(),
    }
)
RESERVED = frozenset(LEADING.names) | frozenset(PROVENANCE.names)
MAX_COLUMNS = 1000
"""Plugins may choose names at will: further ones are left out."""
LONGEST_KIND = 200
"""Bytes of a kind's name, which names the folder of its files."""
RECENT_RUNS = 10_000
"""Runs whose names are remembered."""
_INTEGERS = range(-(2**63), 2**63)

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class RunPoints:
    """Points of a run in the order of their epochs, and what all of them have in common."""

    run: str
    stage: str
    kind: str
    kind_version: int
    sweep: str
    parameters: Mapping[str, Any]
    points: Sequence[Point]


class Curves(AppendedTable):
    """The table of curves. Its batches have numbers of their own, which the ledger does not know."""

    partition = "kind"
    advice = "move it away: the curves of runs that have ended are lost, and later ones are kept"

    def __init__(self, path: Path, application: str) -> None:
        super().__init__(path, application)
        self._known: KnownRuns | None = None  # read at the first append
        self._unclear: set[str] = set()  # runs of an append that failed: the table may have their points
        self._refused: set[tuple[str, str]] = set()

    def schema(self) -> pa.Schema:
        """The columns that every curve has, and the metrics of trainings and fits."""
        metrics = pa.schema([(name, pa.float64()) for name in METRICS])
        return pa.unify_schemas([LEADING, metrics, PROVENANCE])

    def shown(self, stored: pa.Schema) -> pa.Schema:
        """Metrics of trainings and fits are there also before one has measured them."""
        return pa.schema([*stored, *(field for field in self.schema() if field.name not in stored.names)])

    def add(self, found: Sequence[RunPoints]) -> int:
        """Append those points that the table does not hold; returns how many. When this returns, all are on the disk.

        Raises:
            OSError, DeltaError: the table cannot be written; the caller may repeat the call.
        """
        known = self._learn()
        fresh: list[tuple[RunPoints, list[Point]]] = []
        highest: dict[str, int] = {}
        for curve in found:
            last = highest[curve.run] if curve.run in highest else known.highest(curve.run)
            points: list[Point] = []
            for point in curve.points:  # an attempt after another one sends the first epochs again
                if last is None or point.epoch > last:
                    points.append(point)
                    last = point.epoch
            if points:
                fresh.append((curve, points))
                highest[curve.run] = points[-1].epoch
        tables = self._shaped(fresh) if fresh else []
        if not tables:
            self.log.sync()
            return 0
        table: pa.Table = pa.concat_tables(tables, promote_options="default")
        columns = pa.unify_schemas([self.columns(), table.schema])
        self._unclear.update(highest)
        following = self._appended
        self._columns = None
        self.append((self.newest() or 0 if following is None else following) + 1, [table])
        self._unclear.difference_update(highest)
        self._columns = columns  # saves reading it again
        known.note(highest)
        return int(table.num_rows)

    def _learn(self) -> KnownRuns:
        """The highest epoch of each run in the table."""
        if self._known is None:
            known = KnownRuns()
            for highest in self._read(None):
                known.note(highest)
            self._known = known
        elif self._unclear:
            for highest in self._read(sorted(self._unclear)):
                self._known.note(highest)
        self._unclear.clear()
        return self._known

    def _read(self, runs: Sequence[str] | None) -> Iterator[dict[str, int]]:
        """The highest epochs in each file of the table; of these runs, unless it is None."""
        table = self.delta()
        columns = pa.schema([("run", pa.string()), ("epoch", pa.int64())])
        wanted = None if runs is None else pads.field("run").isin(runs)
        for path, _ in () if table is None else data_files(table):
            file = pads.dataset(str(self.path / path), schema=columns, format="parquet")
            rows = file.to_table(filter=wanted).group_by("run").aggregate([("epoch", "max")])
            yield dict(zip(rows["run"].to_pylist(), rows["epoch_max"].to_pylist(), strict=True))

    def _shaped(self, fresh: Sequence[tuple[RunPoints, list[Point]]]) -> list[pa.Table]:
        columns, tables = _Columns(self.columns()), []
        for curve, points in fresh:
            try:
                if len(quote(curve.kind)) > LONGEST_KIND:
                    raise ValueError(f"the name of its kind is longer than {LONGEST_KIND}, and would name a folder")
                tables.append(self._of_run(columns, curve, points))
            except (pa.ArrowException, ValueError, TypeError) as error:  # no run may block the others
                log.warning("points of a run are left out", kind=curve.kind, run=curve.run, error=str(error))
        return tables

    def _of_run(self, columns: _Columns, curve: RunPoints, points: Sequence[Point]) -> pa.Table:
        size = len(points)
        arrays: dict[str, pa.Array] = {}
        for name in ("run", "stage", "kind", "kind_version", "sweep"):
            arrays[name] = pa.repeat(pa.scalar(getattr(curve, name), LEADING.field(name).type), size)
        arrays["epoch"] = pa.array([point.epoch for point in points], pa.int64())
        for name, value in curve.parameters.items():
            if name.lower() in RESERVED or value is None:
                continue
            scalar = _scalar(value)
            column = columns.of_parameter(name, scalar.type)
            if column is None:
                self._refuse(curve.kind, name, f"the table has a column {name!r} of another type")
            else:
                arrays[column] = pa.repeat(scalar.cast(columns.type_of(column)), size)
        for name in dict.fromkeys(name for point in points for name in point.metrics):
            column = columns.of_metric(name, curve.parameters)
            if column is None:
                self._refuse(curve.kind, name, f"the table has {MAX_COLUMNS:,} columns, or other ones of this name")
            else:
                arrays[column] = pa.array([point.metrics.get(name) for point in points], pa.float64())
        at = [datetime.fromtimestamp(point.at, UTC) for point in points]
        arrays["measured_at"] = pa.array(at, PROVENANCE.field("measured_at").type)
        for name in ("attempt", "host", "device"):
            arrays[name] = pa.array([getattr(point, name) for point in points], PROVENANCE.field(name).type)
        return pa.table(arrays)

    def _refuse(self, kind: str, name: str, why: str) -> None:
        if (kind, name) not in self._refused and len(self._refused) < MAX_COLUMNS:
            self._refused.add((kind, name))
            log.warning("a column of curves is left out", kind=kind, column=name, why=why)


class KnownRuns:
    """The highest epoch of each run, in 16 bytes a run: a table may have millions."""

    def __init__(self) -> None:
        self._recent: dict[str, int] = {}
        self._hashes = np.empty(0, np.uint64)  # in order
        self._epochs = np.empty(0, np.int64)

    def highest(self, run: str) -> int | None:
        """The highest epoch of the run, None if the table has none."""
        if run in self._recent:
            return self._recent[run]
        hashed = _hash(run)
        place = int(np.searchsorted(self._hashes, hashed))
        there = place < len(self._hashes) and self._hashes[place] == hashed
        return int(self._epochs[place]) if there else None

    def note(self, highest: Mapping[str, int]) -> None:
        """The table has these epochs of these runs."""
        for run, epoch in highest.items():
            last = self.highest(run)
            self._recent[run] = epoch if last is None else max(epoch, last)
        if len(self._recent) > RECENT_RUNS:
            hashes = np.array([_hash(run) for run in self._recent], np.uint64)
            kept = ~np.isin(self._hashes, hashes)
            hashes = np.concatenate([self._hashes[kept], hashes])
            epochs = np.concatenate([self._epochs[kept], np.array(list(self._recent.values()), np.int64)])
            order = np.argsort(hashes)
            self._hashes, self._epochs, self._recent = hashes[order], epochs[order], {}


def _hash(run: str) -> np.uint64:
    return np.uint64(int.from_bytes(hashlib.blake2b(run.encode(), digest_size=8).digest()))


class _Columns:
    """Gives each name a column of one type. SQL knows no difference of case, so neither does this."""

    def __init__(self, stored: pa.Schema) -> None:
        fields = [*LEADING, *PROVENANCE, *stored]
        self._types: dict[str, pa.DataType] = {field.name: field.type for field in fields}
        self._spelled = {name.lower(): name for name in self._types}

    def type_of(self, column: str) -> pa.DataType:
        """The type of a column."""
        return self._types[column]

    def of_parameter(self, name: str, kind: pa.DataType) -> str | None:
        """The column of a parameter: its name, or, where the column has another type, ``NAME_TYPE``."""
        stored = self._types.get(name)
        if stored == pa.float64() and kind == pa.int64():
            return name
        for column in (name, f"{name}_{kind}"):
            if self._place(column, kind):
                return column
        return None

    def of_metric(self, name: str, parameters: Mapping[str, Any]) -> str | None:
        """The column of a metric: its name, or ``metric_NAME`` where a parameter or another column has that."""
        taken = name.lower() in _known_parameters() or name.lower() in {other.lower() for other in parameters}
        for column in (f"metric_{name}",) if taken else (name, f"metric_{name}"):
            if column.lower() not in RESERVED and self._place(column, pa.float64()):
                return column
        return None

    def _place(self, column: str, kind: pa.DataType) -> bool:
        spelled = self._spelled.get(column.lower())
        if spelled is None:
            if len(self._types) >= MAX_COLUMNS:
                return False
            self._types[column] = kind
            self._spelled[column.lower()] = column
            return True
        return spelled == column and self._types[column] == kind


def _known_parameters() -> frozenset[str]:
    """Names, in lower case, that parameters of installed experiments and of stages have."""
    names = {name for experiment in registry().experiments.values() for name in experiment.params.model_fields}
    names |= {
        *TRAIN_OPTIONS.values(),
        *(name for unit in installed().of("methods").values() for name in unit.model_fields),
    }
    return frozenset(name.lower() for name in names)


def _scalar(value: Any) -> pa.Scalar:
    """A parameter as a typed value; what is no plain value is JSON."""
    if isinstance(value, bool):
        return pa.scalar(value, pa.bool_())
    if isinstance(value, int) and value in _INTEGERS:
        return pa.scalar(value, pa.int64())
    if isinstance(value, float):
        return pa.scalar(value, pa.float64())
    return pa.scalar(value if isinstance(value, str) else json.dumps(value), pa.string())
