"""Admission of brought code: a confined process imports and describes it, and it is stored if it can be used.

The service's own process executes nothing of it.
"""

from __future__ import annotations

import itertools
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import msgpack
import structlog

from creditgrid.core.contract import check_units
from creditgrid.core.errors import CodeError, CreditGridError
from creditgrid.core.experiments.code_registry import registry_of
from creditgrid.core.experiments.stages import code_task
from creditgrid.core.units.brought import load
from creditgrid.core.units.code import Files, checked, sha256_of, to_arrays
from creditgrid.core.units.description import describe
from creditgrid.core.units.unit import Unit
from creditgrid.core.wire import CodeView
from creditgrid.service.codes import DESCRIBED, Codes
from creditgrid.service.people.actor import OPERATOR, Actor
from creditgrid.service.planning.confined_process import Inside, Outside, confined_process
from creditgrid.service.planning.confinement import death
from creditgrid.workers.artifacts import ArtifactStore
from creditgrid.workers.provenance import software

LOAD_S, CHECK_S = 15.0, 30.0
"""Seconds that code may take to be imported, and to be checked."""
KILLED_S = 5.0
"""Seconds after which a process that does not end itself in time is killed."""
SLOTS = 2
"""Codes that are checked at a time."""
POLL_S = 0.1
MOST_FAULTS = 10
"""Broken contracts that an answer names."""

log = structlog.get_logger()


class Admission:
    """Stores code that can be used. May be used from any thread; a call takes a thread until the code is described."""

    def __init__(self, codes: Codes, store: ArtifactStore) -> None:
        self._codes, self._store = codes, store
        self._slots = threading.BoundedSemaphore(SLOTS)

    def admit(
        self, files: Files, actor: Actor = OPERATOR, check: Callable[[], None] = lambda: None
    ) -> tuple[CodeView, bool]:
        """Check and store the files; returns what is known of them, and whether they are new.

        Args:
            check: called often; what it raises ends the admission.

        Raises:
            ForbiddenError: the service takes no code.
            CodeError: the code cannot be used; the message starts with the file and the line.
            ArtifactError: it cannot be stored.
        """
        self._codes.require_allowed()
        files = checked(files)
        sha256 = sha256_of(files)
        task = code_task(sha256)
        if self._store.has(task.key):
            return self._codes.view(sha256), False
        while not self._slots.acquire(timeout=POLL_S):
            check()
        try:
            units = _describe(files, sha256, check)
        finally:
            self._slots.release()
        known = {"units": units, "created_at": datetime.now(UTC).isoformat(), "owner": actor.name}
        self._store.save(task.key, task.payload(), to_arrays(files), {**software(), DESCRIBED: known})
        log.info("code stored", sha256=sha256, units=[unit["name"] for unit in units])
        return self._codes.view(sha256), True


def _describe(files: Files, sha256: str, check: Callable[[], None]) -> Sequence[dict[str, Any]]:
    """The descriptions of the units, made by a confined process."""
    with confined_process(_work, dict(files), sha256, LOAD_S, CHECK_S) as process:
        tag, content = _receive(process, check, next(iter(files)))
    if tag == "units":
        return list(content)
    if tag == "refused":
        raise CodeError(content)
    log.error("code could not be described", traceback=content)
    raise CreditGridError("an unexpected error while the code was described; the service's log has its traceback")


def _receive(process: Outside, check: Callable[[], None], file: str) -> tuple[str, Any]:
    deadline = time.monotonic() + LOAD_S + CHECK_S + KILLED_S
    while not process.answers.poll(POLL_S):
        check()
        if time.monotonic() > deadline:
            process.kill()
            return "refused", death(process.end()[0], None, file)
    try:
        tag, content = msgpack.unpackb(process.answers.recv_bytes(), strict_map_key=False)
    except EOFError:
        return "refused", death(*process.end(), file)
    return tag, content


# -- in the process --------------------------------------------------------------------------------------------------


def _work(inside: Inside, files: Files, sha256: str, load_s: float, check_s: float) -> None:
    """Send the descriptions of the units, or why the code is refused."""

    def send(tag: str, content: Any) -> None:
        inside.answers.send_bytes(msgpack.packb([tag, content]))

    try:
        inside.confine()
        with inside.time_limit(load_s, "load"):
            units = load(files, sha256)
            registry_of(files, sha256)
            found = [describe(unit) for unit in units]
        with inside.time_limit(check_s, "check"):
            faults = broken_contracts(units)
        if faults:
            send("refused", "; ".join(faults))
        else:
            send("units", found)
    except CreditGridError as error:
        send("refused", str(error))
    except ConnectionError:  # the service wants no more
        return
    except Exception:
        send("unexpected", traceback.format_exc())


def broken_contracts(units: Sequence[type[Unit]]) -> Sequence[str]:
    """What the quick checks of the units' contract find, each with file and line."""
    return [str(finding) for finding in itertools.islice(check_units(units, quick=True), MOST_FAULTS)]
