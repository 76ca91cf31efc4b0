"""Every error CreditGrid raises on purpose.

CreditGridError
├── SpecError        a sweep spec is refused whole; carries one Fault for each thing wrong
├── DatasetError     a dataset is unknown, missing, unreadable or corrupt
├── ArtifactError    an artifact cannot be read or written
│   ├── ArtifactMissing
│   └── ArtifactCorrupt
├── CheckpointError  a file is not the state dict of a residual MLP
├── TaskError        a task cannot be computed from its inputs
├── PluginError      an experiment or a unit cannot be used, or its own code raised
│   └── CodeError    files that bring units cannot be used
├── QueryError       a SQL query is refused, fails, or takes too long
├── NotFoundError    no such sweep, cell, artifact or experiment
├── ForbiddenError   the token's role or limits do not allow the request
├── ConflictError    the request does not fit the present state
│   └── PlanCancelled
├── BusyError        the service has too many requests of this kind; try again later
└── RunnerError      the cluster cannot be reached or started

Every message says what was wrong, where, and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


class CreditGridError(Exception):
    """Base of all errors raised on purpose; ``str(error)`` is written for a person."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong with a spec: ``pointer`` is an RFC 6901 JSON pointer into it."""

    detail: str
    pointer: str


class SpecError(CreditGridError):
    """A sweep spec is refused whole, before anything is written."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        self.faults = tuple(faults)
        super().__init__("; ".join(f"{fault.pointer or '/'}: {fault.detail}" for fault in self.faults))


class DatasetError(CreditGridError):
    """A dataset is unknown, missing, unreadable or corrupt."""


class ArtifactError(CreditGridError):
    """An artifact cannot be read or written."""


class ArtifactMissing(ArtifactError):
    """No artifact is stored under this key."""


class ArtifactCorrupt(ArtifactError):
    """The data stored under this key differ from what was written."""


class CheckpointError(CreditGridError):
    """A file is not the state dict of a residual MLP."""


class TaskError(CreditGridError):
    """A task cannot be computed from its inputs."""


class PluginError(CreditGridError):
    """An experiment or a unit cannot be used, or its own code raised; the message names it."""


class CodeError(PluginError):
    """Files that bring units cannot be used; the message names the file and the line."""


class QueryError(CreditGridError):
    """A SQL query is refused, fails, or takes too long."""


class NotFoundError(CreditGridError):
    """No such sweep, cell, artifact or experiment."""


class ForbiddenError(CreditGridError):
    """The token's role or limits do not allow the request."""


class ConflictError(CreditGridError):
    """The request does not fit the present state."""


class PlanCancelled(ConflictError):
    """The planning of a sweep was cancelled; nothing of it is left."""


class BusyError(CreditGridError):
    """The service has too many requests of this kind; a later try may succeed."""


class RunnerError(CreditGridError):
    """The cluster cannot be reached or started."""


LONGEST_WORD = 64
"""Characters of a word that may be a slip of a known one; parameters and columns have at most 63."""


def did_you_mean(word: str, known: Iterable[str], question: str = " (did you mean {!r}?)") -> str:
    """The ``question`` with the known word that is closest to ``word``; empty where none is close."""
    if len(word) > LONGEST_WORD:  # the search takes time that grows with both words
        return ""
    close = difflib.get_close_matches(word, [other for other in known if len(other) <= LONGEST_WORD], n=1)
    return question.format(close[0]) if close else ""
