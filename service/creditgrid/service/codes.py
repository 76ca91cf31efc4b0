"""Brought code that the service has: its files, what its units are, and the experiments with them.

The files are an artifact. Its record holds the description of the units, so this process knows columns, schemas and
summaries without executing anything of the code.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from creditgrid.core.errors import ArtifactCorrupt, ArtifactMissing, CodeError, ForbiddenError, NotFoundError
from creditgrid.core.experiments.code_registry import described_registry
from creditgrid.core.experiments.registry import Registry, registry
from creditgrid.core.experiments.stages import code_task
from creditgrid.core.units.code import Files, from_arrays, is_sha256
from creditgrid.core.units.description import schema_of
from creditgrid.core.wire import CodeView, SweepCode, UnitView
from creditgrid.workers.artifacts import ArtifactStore

Made = TypeVar("Made")
NOT_ALLOWED = (
    "this service takes no code. Whoever runs it can allow it, by `creditgrid serve --allow-code`: the code then runs "
    "as that user"
)
DESCRIBED = "code"
"""The name in a record's provenance of what is known of the code."""
MOST_KEPT = 32
"""Codes whose registries (2 MB each) and views are kept; the one that was not used for the longest time is dropped."""


class Codes:
    """May be used from any thread.

    Args:
        store: the artifacts.
        allowed: whether new code is taken, and sweeps with code are planned.
    """

    def __init__(self, store: ArtifactStore, *, allowed: bool) -> None:
        self._store, self.allowed = store, allowed
        self._lock = threading.Lock()
        self._registries: OrderedDict[str, Registry] = OrderedDict()
        self._views: OrderedDict[str, CodeView] = OrderedDict()

    def require_allowed(self) -> None:
        """Check that the service takes code.

        Raises:
            ForbiddenError: it does not.
        """
        if not self.allowed:
            raise ForbiddenError(NOT_ALLOWED)

    def read(self, sha256: str) -> Files:
        """The files of code that a spec brings.

        Raises:
            ForbiddenError: the service takes no code.
            CodeError: it does not have this code.
        """
        self.require_allowed()
        try:
            return self.files(sha256)
        except (NotFoundError, ArtifactCorrupt) as error:
            again = "send the files again: creditgrid submit SPEC --code FILE, or POST /v1/code"
            raise CodeError(f"{error}: {again}") from error

    def files(self, sha256: str) -> Files:
        """The files.

        Raises:
            NotFoundError: there is no such code.
            ArtifactError: it cannot be read.
        """
        try:
            return from_arrays(self._store.load(_key(sha256)))
        except ArtifactMissing as error:
            raise _absent(sha256) from error

    def view(self, sha256: str) -> CodeView:
        """What is known of the code; raises as ``files``."""
        return self._kept(self._views, sha256, lambda: self._view(sha256))

    def _view(self, sha256: str) -> CodeView:
        known, record = self._known(sha256), self._store.record(_key(sha256))
        units = [
            UnitView(
                **{name: unit[name] for name in ("group", "name", "title", "file", "line")},
                parameters=schema_of(unit),
                columns=unit["columns"],
            )
            for unit in known["units"]
        ]
        files = {path: tensor["shape"][0] for path, tensor in sorted(record["tensors"].items())}
        return CodeView(
            sha256=sha256,
            key=record["key"],
            files=files,
            bytes=sum(files.values()),
            units=units,
            created_at=datetime.fromisoformat(known["created_at"]),
            owner=known["owner"],
        )

    def of_sweep(self, sha256: str) -> SweepCode:
        """What a sweep shows of its code; raises as ``files``."""
        view = self.view(sha256)
        return SweepCode(
            sha256=sha256,
            key=view.key,
            file=next((unit.file for unit in view.units), ""),
            units=[unit.name for unit in view.units],
        )

    def registry(self, sha256: str | None) -> Registry:
        """The experiments, with the units of the code as described.

        Raises:
            CodeError: the code does not fit to what is installed now, or cannot be read.
        """
        if sha256 is None:
            return registry()
        try:
            return self._kept(
                self._registries, sha256, lambda: described_registry(self._known(sha256)["units"], sha256)
            )
        except NotFoundError as error:
            raise CodeError(str(error)) from error

    def _kept(self, kept: OrderedDict[str, Made], sha256: str, make: Callable[[], Made]) -> Made:
        """What was made for this code before, or is made now: it never changes."""
        with self._lock:
            if sha256 in kept:
                kept.move_to_end(sha256)
                return kept[sha256]
        made = make()
        with self._lock:
            kept[sha256] = made
            while len(kept) > MOST_KEPT:
                kept.popitem(last=False)
        return made

    def _known(self, sha256: str) -> Mapping[str, Any]:
        """What was recorded of the code when it was sent."""
        try:
            known = self._store.record(_key(sha256))["provenance"].get(DESCRIBED)
        except ArtifactMissing as error:
            raise _absent(sha256) from error
        if not isinstance(known, Mapping):
            raise _absent(sha256)
        return known


def read_code(root: Path, sha256: str, *, allowed: bool) -> Files:
    """What ``Codes.read`` returns or raises, for a process of its own; ``root`` is the folder of the artifacts."""
    return Codes(ArtifactStore(root), allowed=allowed).read(sha256)


def _key(sha256: str) -> str:
    if not is_sha256(sha256):
        raise _absent(sha256)
    return code_task(sha256).key


def _absent(sha256: str) -> NotFoundError:
    return NotFoundError(f"there is no code {sha256[:80]!r}")
