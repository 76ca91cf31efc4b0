"""The ledger's tables: sweeps, calls, tasks, stages, cells, counts and events; past calls; tokens and the audit log.

A *task* row exists once for each key, whichever sweeps need it. A *call* is the work of one process: all tasks of the
call. An open task, stage or cell has the state of its call, so a step of a call of ten thousand cells writes one row;
only its end writes all its stages and cells, in one statement. Tasks have the state of their call also then
(``task_states``). *stages* and *cells* say which sweep needs which task, and
how it ended for that sweep. *needs*, *counts* and *backlog* are sums over them, kept by ``transitions``.
*earlier_logs* names the logs of calls that had tasks of a call before it.
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Iterable, Iterator
from typing import TypeVar

import sqlalchemy as sa

from creditgrid.core.states import WITHOUT_RESULT, State
from creditgrid.service.ledger import engine

Item = TypeVar("Item")

CELLS = ""
"""The kind under which ``needs`` and ``counts`` hold cells."""
UNKNOWN = -1
"""The scale of work that is unknown."""
NEVER_RUN = 0
"""The call id of a task that this ledger has never computed."""
CHUNK = 500
"""The most keys in one statement; databases limit its parameters."""


def new_log() -> str:
    """A name for the log of a call, which no other call has, also not one of a copy of the ledger."""
    return uuid.uuid4().hex


def one_of(column: sa.ColumnElement[str], states: Iterable[State]) -> sa.ColumnElement[bool]:
    """``IN`` with the states written out: SQLAlchemy compiles a list of parameters again at each execution."""
    return sa.or_(*(column == sa.literal_column(f"'{state}'") for state in states))


metadata = sa.MetaData()

meta = sa.Table("meta", metadata, sa.Column("name", sa.String, primary_key=True), sa.Column("value", sa.String))

sweeps = sa.Table(
    "sweeps",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("id", sa.String, unique=True, nullable=False),
    sa.Column("name", sa.String, nullable=False),
    sa.Column("experiment", sa.String, nullable=False),
    sa.Column("state", sa.String, nullable=False, index=True),
    sa.Column("priority", sa.Integer, nullable=False),
    sa.Column("paused", sa.Boolean, nullable=False, default=False),
    sa.Column("spec", sa.Text, nullable=False),  # as it was submitted
    sa.Column("extensions", sa.Text),  # JSON: the extensions of the spec, in order
    sa.Column("cells", sa.Integer, nullable=False),
    sa.Column("stopped", sa.Text),  # why it ended early
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("finished_at", sa.Float),
    sa.Column("planned", sa.Boolean, nullable=False, server_default=sa.true()),  # false: hidden until its plan is whole
    sa.Column("owner", sa.String, index=True),  # who submitted it
    sa.Column("resources", sa.Text),  # JSON: those of the spec, which may be long
    sqlite_autoincrement=True,
)

idempotency = sa.Table(
    "idempotency",
    metadata,
    sa.Column("key", sa.String, primary_key=True),
    sa.Column("body", sa.String, nullable=False),
    sa.Column("sweep", sa.String, nullable=False),
)

calls = sa.Table(
    "calls",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("sweep", sa.String, nullable=False),
    sa.Column("kind", sa.String, nullable=False),
    sa.Column("state", sa.String, nullable=False),
    sa.Column("size", sa.Integer, nullable=False),
    sa.Column("waiting", sa.Integer, nullable=False, default=0),  # how many tasks it waits for
    sa.Column("attempt", sa.Integer, nullable=False, default=1),
    sa.Column("crashes", sa.Integer, nullable=False, default=0),  # attempts in which the process died
    sa.Column("losses", sa.Integer, nullable=False, default=0),  # attempts that do not count against retry.max
    sa.Column("not_before", sa.Float, nullable=False, default=0.0),
    sa.Column("batch", sa.Integer, index=True),  # the results batch that holds its rows
    sa.Column("seconds", sa.Float),
    sa.Column("launches", sa.Float),  # its work; null if it is unknown
    sa.Column("flops", sa.Float),
    sa.Column("elements", sa.Float),
    sa.Column("level", sa.Integer, nullable=False, server_default="0"),  # the longest way to a task without parents
    sa.Column("scale", sa.Integer, nullable=False, server_default="-1"),  # of its work, see ``backlog``
    sa.Column("host", sa.String),
    sa.Column("error", engine.UncheckedText),
    sa.Column("traceback", engine.UncheckedText),
    sa.Column("log", sa.String, index=True, default=new_log),  # names the file of what it prints
    sa.Index("calls_ready", "sweep", "state", "waiting", "id"),
    sa.Index("calls_open", "state"),
    sa.Index("calls_kind", "kind", "state"),
    sqlite_autoincrement=True,
)

earlier_logs = sa.Table(  # of calls that had tasks of the call before it: it was split off, or they ran again
    "earlier_logs",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("call", sa.Integer, nullable=False, index=True),
    sa.Column("log", sa.String, nullable=False),
)

waits = sa.Table(
    "waits",
    metadata,
    sa.Column("call", sa.Integer, primary_key=True),
    sa.Column("key", sa.String, primary_key=True),
    sa.Index("waits_key", "key"),
)

tasks = sa.Table(
    "tasks",
    metadata,
    sa.Column("key", sa.String, primary_key=True),
    sa.Column("kind", sa.String, nullable=False),
    sa.Column("state", sa.String, nullable=False),
    sa.Column("call", sa.Integer, nullable=False, index=True),
    sa.Column("params", sa.Text, nullable=False),  # JSON
    sa.Column("shared", sa.Text, nullable=False),  # JSON: version, parents, group, source
    sa.Column("blame", sa.String),  # of a skipped task: the task that failed
    sa.Column("bytes", sa.BigInteger),
    sa.Column("diverged", sa.Boolean, nullable=False, default=False),
)

stages = sa.Table(
    "stages",
    metadata,
    sa.Column("sweep", sa.String, primary_key=True),
    sa.Column("key", sa.String, primary_key=True),
    sa.Column("call", sa.Integer, index=True),
    sa.Column("state", sa.String, nullable=False),
)
# A page of stages without a result, and a count of them, need not read the others.
sa.Index(
    "stages_without_result",
    *(stages.c.sweep, stages.c.state, stages.c.key, stages.c.call),
    sqlite_where=one_of(stages.c.state, WITHOUT_RESULT),
    postgresql_where=one_of(stages.c.state, WITHOUT_RESULT),
)

cells = sa.Table(
    "cells",
    metadata,
    sa.Column("sweep", sa.String, primary_key=True),
    sa.Column("idx", sa.BigInteger, primary_key=True),
    sa.Column("key", sa.String, nullable=False),
    sa.Column("call", sa.Integer, index=True),
    sa.Column("state", sa.String, nullable=False),
    sa.Index("cells_in_state", "sweep", "state", "idx", "call"),
)

needs = sa.Table(  # how many open cells (kind "") or stages of a sweep each open call computes
    "needs",
    metadata,
    sa.Column("call", sa.Integer, primary_key=True),
    sa.Column("sweep", sa.String, primary_key=True),
    sa.Column("kind", sa.String, primary_key=True),
    sa.Column("open", sa.BigInteger, nullable=False),
    sa.Index("needs_sweep", "sweep"),
)

counts = sa.Table(  # cells (kind "") and stages of a sweep by state, as a status shows them
    "counts",
    metadata,
    sa.Column("sweep", sa.String, primary_key=True),
    sa.Column("kind", sa.String, primary_key=True),
    sa.Column("state", sa.String, primary_key=True),
    sa.Column("n", sa.BigInteger, nullable=False),
)

backlog = sa.Table(  # the work that is left of an open sweep; calls of one kind, level and order of magnitude together
    "backlog",
    metadata,
    sa.Column("sweep", sa.String, primary_key=True),
    sa.Column("kind", sa.String, primary_key=True),
    sa.Column("level", sa.Integer, primary_key=True),
    sa.Column("scale", sa.Integer, primary_key=True),  # UNKNOWN where the work is unknown
    sa.Column("planned", sa.BigInteger, nullable=False),  # calls that the last plan found open
    sa.Column("open", sa.BigInteger, nullable=False),
    sa.Column("launches", sa.Float, nullable=False),
    sa.Column("flops", sa.Float, nullable=False),
    sa.Column("elements", sa.Float, nullable=False),
)

past_calls = sa.Table(  # what the last calls of each kind took on each device, to predict others
    "past_calls",
    metadata,
    sa.Column("kind", sa.String, primary_key=True),
    sa.Column("device", sa.String, primary_key=True),
    sa.Column("slot", sa.Integer, primary_key=True),  # a new call takes the slot of the oldest
    sa.Column("launches", sa.Float),
    sa.Column("flops", sa.Float),
    sa.Column("elements", sa.Float),
    sa.Column("tasks", sa.BigInteger, nullable=False),
    sa.Column("seconds", sa.Float, nullable=False),
    sa.Column("artifacts", sa.BigInteger, nullable=False),
    sa.Column("bytes", sa.BigInteger, nullable=False),
    sa.Column("at", sa.Float, nullable=False),
)

events = sa.Table(
    "events",
    metadata,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    sa.Column("sweep", sa.String, nullable=False),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("type", sa.String, nullable=False),
    sa.Column("data", sa.Text, nullable=False),
    sa.Index("events_sweep", "sweep", "id"),
    sqlite_autoincrement=True,
)

tokens = sa.Table(
    "tokens",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("name", sa.String, nullable=False),  # the holder; used again once the earlier token has ended
    sa.Column("hash", sa.String, unique=True, nullable=False),  # SHA-256 of the token, which nobody stores
    sa.Column("role", sa.String, nullable=False),
    sa.Column("max_open_cells", sa.BigInteger),
    sa.Column("max_priority", sa.Integer),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("expires_at", sa.Float),
    sa.Column("last_used_at", sa.Float),
    sa.Column("revoked_at", sa.Float),
    sqlite_autoincrement=True,
)

audit = sa.Table(  # who changed what; rows are only added
    "audit",
    metadata,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("actor", sa.String),  # the name of a token; null without tokens
    sa.Column("request", sa.String),
    sa.Column("action", sa.String, nullable=False),
    sa.Column("target", engine.UncheckedText, nullable=False),
    sa.Column("outcome", sa.String, nullable=False),
    sa.Column("detail", engine.UncheckedText, nullable=False),
    sqlite_autoincrement=True,
)


def chunks(items: Iterable[Item], size: int = CHUNK) -> Iterator[list[Item]]:
    """Split items into lists that fit one statement."""
    rest = iter(items)
    while piece := list(itertools.islice(rest, size)):
        yield piece
