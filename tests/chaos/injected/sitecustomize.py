"""Loaded at its start by every Python process of a chaos run: service, Ray driver and workers. They do not know of it.

A *point* is a moment such as "an artifact is about to be renamed". A file of that name in ``$CREDITGRID_CHAOS_DIR``
arms it. The first process that reaches the point takes the file (by a rename, so that only one process has it), writes
a note about itself, and kills itself as ``kill -9`` would. The armed file lists Ray tasks that are spared.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

FOLDER = Path(os.environ.get("CREDITGRID_CHAOS_DIR", "/nonexistent"))
WRITING = ".writing-"
SOON = {"LEVELS": ((0, 4 * 2**20, 3), (4 * 2**20, 64 * 2**20, 32)), "CHECKPOINT_EVERY": 6}
"""Settings of the results table's upkeep: compactions of 64 files would not happen in a short run."""

_rename, _replace, _fsync = os.rename, os.replace, os.fsync


def title() -> str:
    """The title of this process; for a Ray worker, the task that it runs."""
    return Path("/proc/self/cmdline").read_bytes().split(b"\0")[0].decode(errors="replace").strip()


def strike(point: str, **seen: Any) -> None:
    """Kill this process, if the point is armed and the process is not spared."""
    armed = FOLDER / point
    try:
        spared = armed.read_text().split("\n")
        name = title()
        if name in spared:
            return
        _rename(armed, FOLDER / f"{point}.taken")
    except FileNotFoundError:
        return
    note = json.dumps({"point": point, "pid": os.getpid(), "title": name, "at": time.time(), **seen})
    (FOLDER / f"{point}.note").write_text(note)
    _rename(FOLDER / f"{point}.note", FOLDER / f"{point}.struck")
    _die()


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def renaming(original: Callable[..., None]) -> Callable[..., None]:
    """``os.rename`` or ``os.replace`` that can kill the writer of an artifact or of a resume state."""

    def rename(source: Any, target: Any, **options: Any) -> None:
        path = Path(os.fsdecode(source)) if isinstance(source, str | bytes | os.PathLike) else Path()
        kind = None
        if path.name.startswith(WRITING):
            kind = "artifact"
        elif path.parent.name == "saves" and path.name.startswith("."):
            kind = "save"
        if kind is None:
            original(source, target, **options)
            return
        strike(f"{kind}-before-rename")
        original(source, target, **options)
        strike(f"{kind}-after-rename")

    return rename


class Watch:
    """While Delta writes, watch the table's files, and strike between a new data file and its entry in the log."""

    def __init__(self, point: str, table: Path) -> None:
        self._point, self._table = point, table
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> None:
        if (FOLDER / self._point).exists():
            self._interval = sys.getswitchinterval()
            sys.setswitchinterval(1e-5)  # there is less than a millisecond between the two
            self._before = self._files()
            self._thread.start()

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()
            sys.setswitchinterval(self._interval)

    def _run(self) -> None:
        armed, struck = FOLDER / self._point, FOLDER / f"{self._point}.struck"
        while not self._over.is_set():
            new = self._files() - self._before
            if any(".json" in name for name in new):
                return  # too late, the entry is there: the point stays armed
            if any(".parquet" in name for name in new):
                _rename(armed, struck)  # no note: there is no time to write it
                _die()

    def _files(self) -> set[str]:
        # A name that ends in # and a number is a file that is being written.
        found = set()
        try:
            for folder in os.scandir(self._table):
                if folder.is_dir():
                    found |= {file.name for file in os.scandir(folder)}
        except FileNotFoundError:
            return found
        return found


def patch_deltalake(module: ModuleType) -> None:
    """Appends and compactions can kill the service."""
    write: Callable[..., Any] = module.write_deltalake
    optimizer = sys.modules[module.DeltaTable.__module__].TableOptimizer
    compact: Callable[..., Any] = optimizer.compact

    def write_deltalake(table_or_uri: Any, *args: Any, **options: Any) -> Any:
        strike("delta-before")
        where = table_or_uri if isinstance(table_or_uri, str | Path) else table_or_uri.table_uri
        with Watch("delta-during", _local(str(where))):
            result = write(table_or_uri, *args, **options)
        strike("delta-after")
        return result

    def compact_table(self: Any, *args: Any, **options: Any) -> Any:
        strike("compaction-before")
        with Watch("compaction-during", _local(str(self.table.table_uri))):
            result = compact(self, *args, **options)
        strike("compaction-after")
        return result

    module.write_deltalake = write_deltalake  # type: ignore[attr-defined]
    optimizer.compact = compact_table


def _local(uri: str) -> Path:
    return Path(uri.removeprefix("file://"))


def patch_sqlalchemy(module: ModuleType) -> None:
    """A commit of the ledger that changes something can kill the service."""
    dialect = sys.modules["sqlalchemy.engine.default"].DefaultDialect
    commit: Callable[..., None] = dialect.do_commit
    changes: dict[int, int] = {}

    def do_commit(self: Any, connection: Any) -> None:
        raw = getattr(connection, "driver_connection", None) or connection
        total = getattr(raw, "total_changes", None)  # only SQLite counts changes; elsewhere any commit will do
        writes = total is None or total != changes.get(id(raw), 0)
        if total is not None:
            changes[id(raw)] = total
        if writes:
            strike("ledger-before-commit")
        commit(self, connection)
        if writes:
            strike("ledger-after-commit")

    dialect.do_commit = do_commit


def patch_upkeep(module: ModuleType) -> None:
    """Make compactions and checkpoints happen in a short run too."""
    for name, value in SOON.items():
        if not hasattr(module, name):
            raise AttributeError(f"{module.__name__} has no {name} any more: the chaos run needs its new name")
        setattr(module, name, value)


PATCHES: dict[str, Callable[[ModuleType], None]] = {
    "deltalake": patch_deltalake,
    "sqlalchemy": patch_sqlalchemy,
    "creditgrid.service.results.upkeep": patch_upkeep,
}


class Patching:
    """An import hook: after a module of ``PATCHES`` has been executed its patch is applied."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        patch = PATCHES.get(name)
        if patch is None:
            return None
        for finder in sys.meta_path:
            spec = None if finder is self or not hasattr(finder, "find_spec") else finder.find_spec(name, path, target)
            if spec is not None and spec.loader is not None:
                execute = spec.loader.exec_module

                spec.loader.exec_module = _followed(execute, patch)  # type: ignore[method-assign]
                return spec
        return None


def _followed(execute: Callable[[ModuleType], None], patch: Callable[[ModuleType], None]) -> Callable[..., None]:
    def exec_module(module: ModuleType) -> None:
        execute(module)
        patch(module)

    return exec_module


if FOLDER.is_dir():
    os.rename, os.replace = renaming(_rename), renaming(_replace)
    sys.meta_path.insert(0, Patching())
