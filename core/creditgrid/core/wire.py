"""The models that go over HTTP, shared by service, client and command line."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from creditgrid.core.experiment import Chart, Column, Verdict
from creditgrid.core.states import State

Item = TypeVar("Item")

MAX_SPEC_BYTES = 4 * 2**20
"""A larger spec is refused unread."""
MAX_NAMES = 100
"""The most names in one object or zip group of a spec, and the most zip groups: far more than any experiment has."""
MAX_INCLUDED = 100_000
"""The most entries of ``include``; each is checked alone."""


class Wire(BaseModel):
    """Base of the models. An older client ignores unknown fields of a newer service."""

    model_config = ConfigDict(frozen=True)


class Role(StrEnum):
    """What the holder of a token may do; each role may do what the roles before it may."""

    READ = "read"  # read everything, plan, query
    SUBMIT = "submit"  # submit sweeps, change one's own, import checkpoints, send code
    ADMIN = "admin"  # change every sweep, remove artifacts, manage tokens, read the audit log

    def allows(self, needed: Role) -> bool:
        """Whether this role may do what ``needed`` may."""
        order = list(Role)
        return order.index(self) >= order.index(needed)


class ProblemError(Wire):
    """One thing wrong with a request."""

    detail: str
    pointer: str = Field("", description="RFC 6901 JSON pointer into the request body.")


class Problem(Wire):
    """RFC 9457 problem details."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    instance: str | None = None
    errors: list[ProblemError] = []


class Page(Wire, Generic[Item]):
    """One page of a list; ``next`` is an opaque cursor for the next page, null at the end."""

    items: list[Item]
    next: str | None = None


class Condition(Wire):
    """Something to know about a sweep in addition to its state."""

    type: str
    message: str


class Activity(Wire):
    """A running call: ``done`` of ``total`` steps."""

    call: int
    kind: str
    tasks: int
    done: int = 0
    total: int = 0
    note: str = ""


class SweepCode(Wire):
    """The code that a sweep brings."""

    sha256: str
    key: str
    file: str = Field(description="Where its first unit is.")
    units: list[str]


class SweepView(Wire):
    """A sweep and its progress; ``counts`` are cells by state and add up to ``cells``."""

    id: str
    name: str
    experiment: str
    state: State
    priority: int
    cells: int
    counts: dict[State, int]
    tasks: dict[str, dict[State, int]] = Field(default={}, description="Stages below the cells, by kind and state.")
    owner: str | None = Field(None, description="Who submitted it: the name of a token; null without tokens.")
    created_at: datetime
    finished_at: datetime | None = None
    paused: bool = Field(False, description="No new call starts until the sweep is resumed; running calls finish.")
    remaining_s: float | None = Field(
        None, description="Seconds left, from progress, work and how fast earlier calls were; null while unknown."
    )
    conditions: list[Condition] = []
    active: list[Activity] = []
    code: SweepCode | None = Field(None, description="The code that it brings; left out of lists.")
    spec: dict[str, Any] | None = Field(None, description="The spec with its extensions; left out of lists.")


class SubmissionView(Wire):
    """A submission, extension or retry that is being planned; its cells are not visible yet."""

    id: str = Field(description="The id that a new sweep will have.")
    name: str = Field(description="Of the spec; empty while it is read.")
    owner: str | None
    cells: int = Field(description="Cells planned so far.")
    most_cells: int | None = Field(description="The most cells that the spec can have; null while it is read.")
    created_at: datetime


class CellView(Wire):
    """One cell: its parameters, its key, and the keys of the artifacts its rows depend on, by role."""

    index: int
    key: str
    state: State
    params: dict[str, Any]
    parents: dict[str, str]
    diverged: bool = Field(False, description="A measured number is not finite, and is stored as null.")
    error: str | None = Field(None, description="Why there is no result, in one line.")


class TaskView(Wire):
    """One stage task of a sweep."""

    key: str
    kind: str
    state: State
    params: dict[str, Any]
    parents: dict[str, str]
    attempt: int
    seconds: float | None = None
    bytes: int | None = None
    error: str | None = None


class FailureView(Wire):
    """Failures with the same cause."""

    cause: str
    kind: str
    count: int = Field(
        description="Tasks or cells that failed for this cause; `skipped` counts those that could not run after it."
    )
    skipped: int
    traceback: str
    log: str = Field("", description="The end of what the call of the failed task printed and logged, at most 4 KiB.")
    attempt: int
    host: str | None
    key: str = Field(description="One of the failed tasks.")
    command: str = Field(description="Computes that task on this machine and shows the error.")


class LogView(Wire):
    """The log of a call that has printed something, and one of the call's tasks."""

    call: int
    kind: str
    key: str = Field(description="Of one task of the call; `GET /v1/tasks/{key}/logs` has the text.")
    state: State = Field(description="Of the call.")
    bytes: int = Field(description="All that was written; the last MiB is kept.")
    written_at: datetime


class TaskDocument(Wire):
    """What a machine needs to compute one task (a stage or a cell), besides the artifacts of its parents."""

    key: str
    kind: str
    version: int
    params: dict[str, Any]
    parents: dict[str, str]
    group: str
    source: dict[str, str]
    parent_versions: dict[str, int] | None = Field(
        None, description="Versions of the parents by role; null if it was planned before they were recorded."
    )
    cpu: float = Field(1.0, description="The number of threads of its call, which affects the last digits.")


class Request(Wire):
    """Base of the models of request bodies. No value is taken for another: 0 is not false, and "1" is not 1."""

    model_config = ConfigDict(frozen=True, strict=True)


class Extension(Request):
    """More cells for a sweep: values for its axes, and further included cells."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    axes: dict[str, Any] = Field(
        default={}, max_length=MAX_NAMES, description="New values by axis: a list or a generator, as in a spec."
    )
    include: list[dict[str, Any]] = Field(
        default=[], max_length=MAX_INCLUDED, description="Extra cells, on top of the sweep's `fixed`."
    )


class RetentionRequest(Request):
    """Which artifacts to remove: those unused for ``older_than_s``, then the longest unused beyond ``max_bytes``."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    older_than_s: float | None = Field(
        None, ge=0, description="Remove artifacts, and logs of tasks, unused for this many seconds."
    )
    max_bytes: int | None = Field(None, ge=0, description="Then remove the longest unused until the rest fits.")
    dry_run: bool = Field(False, description="Remove nothing, and report what would be removed.")


class RetentionView(Wire):
    """What a retention run removed, or would remove, and what it kept."""

    dry_run: bool
    removed: int
    removed_bytes: int
    kept: int
    kept_bytes: int
    in_use: int = Field(description="How many of the kept artifacts an open sweep needs.")
    leftovers: int = Field(description="Files of interrupted writes and of finished calls.")
    leftover_bytes: int


class EventView(Wire):
    """One event of a sweep; ids are durable and increase."""

    id: int
    sweep: str
    at: datetime
    type: str
    data: dict[str, Any]


TERMINAL_EVENT = "sweep.finished"
"""The type of the last event of a sweep."""


class PlanKind(Wire):
    """What a plan does with the tasks of one kind; ``calls`` counts the calls for the new ones."""

    total: int
    cached: int
    shared: int
    new: int
    unneeded: int
    calls: int
    estimated_seconds: float | None = Field(None, description="Of computing the new ones; null while unknown.")
    estimated_bytes: int | None = Field(None, description="Of their artifacts; null while unknown.")


class Miss(Wire):
    """Why tasks of one kind will be computed."""

    kind: str
    reason: str
    count: int
    example: dict[str, Any] = Field(description="The hashed payload of one of them.")


class PlanView(Wire):
    """A dry run: nothing is written."""

    name: str
    experiment: str
    cells: PlanKind
    tasks: dict[str, PlanKind]
    groups: int = Field(description="Calls that measure cells.")
    misses: list[Miss]
    estimated_seconds: float | None = Field(
        None,
        description="Until the last row is written, on `cpus` and `gpus` that do nothing else; null while unknown.",
    )
    compute_seconds: float | None = Field(
        None, description="Of all new calls together, one after the other; null while unknown."
    )
    estimated_bytes: int | None = Field(None, description="New artifacts on the disk; null while unknown.")
    cpus: float | None = Field(None, description="CPUs of the cluster; without a service, of this machine.")
    gpus: float | None = Field(None, description="GPUs of the cluster.")
    notes: list[str] = Field(default=[], description="Why something is unknown, such as a cost model that fails.")


class SummaryView(Wire):
    """A table for a person, and the verdicts; ``complete`` is false while cells are missing."""

    sweep: str
    title: str
    columns: list[str]
    rows: list[dict[str, Any]]
    verdicts: list[Verdict]
    complete: bool


class ExperimentView(Wire):
    """An experiment; ``parameters`` is a JSON Schema. ``problem`` says why a broken one cannot be used."""

    name: str
    title: str
    parameters: dict[str, Any]
    columns: dict[str, Column]
    kinds: list[str]
    charts: list[Chart] = []
    problem: str | None = None


class CodeRequest(Request):
    """Files of Python with units in them."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    files: dict[str, str] = Field(max_length=100, description="The text of each file, by its relative path with `/`.")


class UnitView(Wire):
    """A unit of brought code: a method, a rule, a network, a dataset or a measurement."""

    group: str = Field(description="methods, rules, networks, datasets or measurements.")
    name: str = Field(description="What a spec writes.")
    title: str
    file: str
    line: int
    parameters: dict[str, dict[str, Any]] = Field(description="By name in specs, as JSON Schema.")
    columns: dict[str, Column] = Field(default={}, description="What a measurement adds to rows.")


class CodeView(Wire):
    """Code that was sent: a spec names it by ``code: <sha256>``, and may then choose its units."""

    sha256: str = Field(description="Of the paths and contents of its files.")
    key: str = Field(description="Of the artifact that holds the files.")
    files: dict[str, int] = Field(description="The bytes of each file.")
    bytes: int
    units: list[UnitView]
    created_at: datetime
    owner: str | None = Field(description="Who sent it first; null without tokens.")


class CheckpointView(Wire):
    """An imported checkpoint: the ``name`` to use in a spec, and the ``key`` of its artifact."""

    name: str
    key: str
    num_blocks: int
    d_hidden: int
    input_dim: int
    num_classes: int
    bytes: int


class TokenRequest(Wire):
    """A token to create."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str = Field(
        pattern="^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="Its holder, who owns the sweeps submitted with it."
    )
    role: Role
    expires_s: float | None = Field(
        None, gt=0, le=10 * 366 * 86400, strict=True, description="Seconds until it expires; null: never."
    )
    max_open_cells: int | None = Field(
        None, ge=0, le=2**53, strict=True, description="Open cells of the holder's sweeps; null: the service's limit."
    )
    max_priority: int | None = Field(
        None, ge=-1000, le=1000, strict=True, description="Of the holder's sweeps; null: the service's limit."
    )


class TokenView(Wire):
    """A token, without its text. An expired or revoked one is not accepted."""

    name: str
    role: Role
    created_at: datetime
    expires_at: datetime | None = None
    last_used_at: datetime | None = Field(None, description="To the minute after a restart of the service.")
    revoked_at: datetime | None = None
    max_open_cells: int | None = Field(None, description="Further cells are refused; null: no limit.")
    max_priority: int | None = Field(None, description="Sweeps of a higher priority are refused; null: no limit.")


class NewToken(TokenView):
    """A token that was just created."""

    token: str = Field(description="Its text, which is shown once and stored nowhere.")


class AuditView(Wire):
    """One change, or a request for one that was refused."""

    id: int
    at: datetime
    actor: str | None = Field(description="The name of the token; null in a service without tokens.")
    request: str | None = Field(description="The request's `X-Request-ID`.")
    action: str
    target: str = Field(description="The sweep, token or checkpoint.")
    outcome: str = Field(description="`done` or `refused`.")
    detail: str


class Query(Request):
    """A SQL query over the table ``results`` and the views ``cells`` and ``sweeps``."""

    sql: str = Field(min_length=1, max_length=100_000)


MEDIA_TYPES: dict[str, str] = {
    "arrow": "application/vnd.apache.arrow.stream",
    "parquet": "application/vnd.apache.parquet",
    "csv": "text/csv",
    "json": "application/json",
}
"""Formats of results, in order of preference, with the media type of each."""
MAX_CHECKPOINT_BYTES = 2**30
"""A larger file is not imported as a checkpoint."""
