"""Compares two data directories: cells, rows to the last bit, curves, artifacts, leftover files.

The product's code is not used: deltalake reads the table, and artifacts and temporary files are read from the disk.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
from deltalake import DeltaTable

PROVENANCE = ("sweep", "attempt", "started_at", "seconds", "device", "host", "commit", "dirty")
"""Columns that say where and when a row was made: two runs may differ in them. All others are compared bit by bit."""
SHOWN = 5
"""How many examples of a violation are shown."""


@dataclass(frozen=True, slots=True)
class Violation:
    """Something that must not happen: its kind, and where it was found."""

    kind: str
    what: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.what}"


@dataclass(frozen=True, slots=True)
class Rows:
    """A results table: the rows of each cell, as the bits of their values by column, without provenance."""

    cells: Mapping[str, Counter[tuple[tuple[str, bytes | None], ...]]]

    @property
    def count(self) -> int:
        return sum(sum(rows.values()) for rows in self.cells.values())


@dataclass(slots=True)
class Compared:
    """The result of a comparison of rows."""

    lost: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)
    violations: list[Violation] = field(default_factory=list)


def rows_of(table: pa.Table) -> Rows:
    """The table's rows by cell; a column that is null in a row counts as absent, so that merged schemas compare."""
    columns = {name: column.to_pylist() for name, column in zip(table.column_names, table.columns, strict=True)}
    names = sorted(set(columns) - {*PROVENANCE, "cell"})
    cells: dict[str, Counter[Any]] = defaultdict(Counter)
    for number, cell in enumerate(columns["cell"]):
        row = tuple((name, bits(columns[name][number])) for name in names if columns[name][number] is not None)
        cells[cell][row] += 1
    return Rows(cells)


def bits(value: Any) -> bytes:
    """A value's bits; all 64 of a float, so that -0.0 is not 0.0 and one NaN may differ from another."""
    if isinstance(value, bool):
        return b"b1" if value else b"b0"
    if isinstance(value, float):
        return b"f" + struct.pack("<d", value)
    return type(value).__name__.encode() + repr(value).encode()


def compare_rows(found: Rows, expected: Rows) -> Compared:
    """Check that every cell has exactly the same rows in ``found`` as in ``expected``."""
    out = Compared()
    for cell in expected.cells.keys() - found.cells.keys():
        out.lost.append(cell)
    for cell in found.cells.keys() - expected.cells.keys():
        out.violations.append(Violation("cell nobody asked for", cell[:12]))
    changed: dict[str, list[str]] = defaultdict(list)
    for cell in expected.cells.keys() & found.cells.keys():
        have, want = found.cells[cell], expected.cells[cell]
        if have == want:
            continue
        if have.total() > want.total():
            out.twice.append(cell)
        elif have.total() < want.total():
            out.lost.append(cell)
        else:
            for name in _differing(have - want, want - have):
                changed[name].append(cell)
    out.violations += _with_examples("lost cell or row", out.lost)
    out.violations += _with_examples("cell with more rows than it has", out.twice)
    for name, cells in sorted(changed.items()):
        out.violations += _with_examples(f"other bits in column {name}", cells)
    return out


def _differing(have: Counter[Any], want: Counter[Any]) -> list[str]:
    names = set()
    for one, other in zip(sorted(have.elements()), sorted(want.elements()), strict=True):
        names |= {name for name, _ in set(one) ^ set(other)}
    return sorted(names)


def _with_examples(kind: str, cells: Sequence[str]) -> list[Violation]:
    if not cells:
        return []
    examples = ", ".join(cell[:12] for cell in sorted(cells)[:SHOWN])
    return [Violation(kind, f"{len(cells):,}, such as {examples}")]


def curves_of(table: pa.Table) -> Rows:
    """The table of curves: the rows of each epoch of a run, with what does not depend on time."""
    names = ["kind", "kind_version", "train_loss", "fit_loss", "step_size", "seed"]
    chosen = table.select([name for name in names if name in table.column_names])
    epochs = [f"{row['run']} {row['epoch']}" for row in table.select(["run", "epoch"]).to_pylist()]
    return rows_of(chosen.append_column("cell", pa.array(epochs, pa.string())))


def compare_curves(found: Rows, expected: Rows) -> list[Violation]:
    """Check that each epoch of each run is there once, with the same losses."""
    compared = compare_rows(found, expected)
    return [Violation(f"curves: {one.kind}", one.what) for one in compared.violations]


def artifacts(store: Path) -> tuple[dict[str, str], list[Violation]]:
    """The SHA-256 of every artifact's tensors by key, and the incomplete artifacts."""
    found, violations = {}, []
    for place in sorted(store.glob("[0-9a-f][0-9a-f]/[0-9a-f]*")):
        tensors, record = place / "tensors.safetensors", place / "record.json"
        if not tensors.is_file() or not record.is_file():
            violations.append(Violation("incomplete artifact", place.name[:12]))
            continue
        digest = hashlib.sha256(tensors.read_bytes()).hexdigest()
        if json.loads(record.read_bytes()).get("sha256") != digest:
            violations.append(Violation("artifact whose record has another checksum", place.name[:12]))
        found[place.name] = digest
    return found, violations


def compare_artifacts(found: Mapping[str, str], expected: Mapping[str, str]) -> list[Violation]:
    """Check that the artifacts are the same, with the same bytes."""
    changed = [key for key in found.keys() & expected.keys() if found[key] != expected[key]]
    return [
        *_with_examples("lost artifact", sorted(expected.keys() - found.keys())),
        *_with_examples("artifact nobody asked for", sorted(found.keys() - expected.keys())),
        *_with_examples("artifact with other bytes", changed),
    ]


@dataclass(frozen=True, slots=True)
class Leftovers:
    """Files of writers that died. ``replaced`` files are no leftovers: they were compacted, and wait for the vacuum."""

    artifacts: Sequence[str]
    saves: Sequence[str]
    aside: Sequence[str]
    unlogged: Sequence[str]
    other: Sequence[str]
    replaced: int

    def violations(self) -> list[Violation]:
        """One violation for each kind of leftover."""
        return [
            *_files("temporary artifact left", self.artifacts),
            *_files("resume state left of a call that has ended", self.saves),
            *_files("file set aside as damaged", self.aside),
            *_files("file of the table outside its log", self.unlogged),
            *_files("temporary file left", self.other),
        ]


def _files(kind: str, names: Sequence[str]) -> list[Violation]:
    return [Violation(kind, f"{len(names)}: {', '.join(names[:SHOWN])}")] if names else []


def leftovers(data: Path) -> Leftovers:
    """The leftovers in a data directory whose service has stopped and whose sweeps have ended."""
    store, tables = data / "artifacts", [table for table in (data / "results", data / "curves") if table.exists()]
    unlogged, replaced = [], 0
    for table in tables:
        log = table / "_delta_log"
        added, removed = logged_files(log)
        for path in sorted(file for file in table.rglob("*") if file.is_file()):
            name = path.relative_to(table).as_posix()
            if path.parent == log:
                if not re.fullmatch(r"\d{20}\.(json|checkpoint\.parquet)|_last_checkpoint", path.name):
                    unlogged.append(name)
            elif name in removed:
                replaced += 1
            elif name not in added and path.parent.name != "_set_aside":
                unlogged.append(name)
    set_aside = [store / "corrupt", *(table / "_set_aside" for table in tables)]
    return Leftovers(
        artifacts=[path.name for path in sorted(store.glob("*/.*")) if path.parent.name not in ("saves", "logs")],
        saves=[path.name for path in sorted((store / "saves").glob("*"))],
        aside=[path.name for path in sorted(path for folder in set_aside for path in folder.glob("*"))],
        unlogged=unlogged,
        other=[path.name for path in sorted(data.glob("*")) if path.name.startswith(".") or path.suffix == ".tmp"],
        replaced=replaced,
    )


def logged_files(log: Path) -> tuple[set[str], set[str]]:
    """The table's data files according to its log, and the files that the remaining commits removed."""
    table = DeltaTable(str(log.parent))
    live = {unquote(path) for path in pa.table(table.get_add_actions())["path"].to_pylist()}
    removed = set()
    for entry in sorted(log.glob("*.json")):
        for line in entry.read_text().splitlines():
            action = json.loads(line)
            if "remove" in action:
                removed.add(unquote(action["remove"]["path"]))
    return live, removed
