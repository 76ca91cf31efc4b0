"""The first schema that alembic knows. A revision never changes after its release: ledgers have it."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create all tables."""
    op.create_table(
        "meta",
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("value", sa.String),
    )
    op.create_table(
        "sweeps",
        sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("id", sa.String, nullable=False, unique=True),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("experiment", sa.String, nullable=False),
        sa.Column("state", sa.String, nullable=False),
        sa.Column("priority", sa.Integer, nullable=False),
        sa.Column("paused", sa.Boolean, nullable=False),
        sa.Column("spec", sa.Text, nullable=False),
        sa.Column("extensions", sa.Text),
        sa.Column("cells", sa.Integer, nullable=False),
        sa.Column("stopped", sa.Text),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("finished_at", sa.Float),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_sweeps_state", "sweeps", ["state"])
    op.create_table(
        "idempotency",
        sa.Column("key", sa.String, primary_key=True),
        sa.Column("body", sa.String, nullable=False),
        sa.Column("sweep", sa.String, nullable=False),
    )
    op.create_table(
        "calls",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("sweep", sa.String, nullable=False),
        sa.Column("kind", sa.String, nullable=False),
        sa.Column("state", sa.String, nullable=False),
        sa.Column("size", sa.Integer, nullable=False),
        sa.Column("waiting", sa.Integer, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("crashes", sa.Integer, nullable=False),
        sa.Column("losses", sa.Integer, nullable=False),
        sa.Column("not_before", sa.Float, nullable=False),
        sa.Column("batch", sa.Integer),
        sa.Column("seconds", sa.Float),
        sa.Column("host", sa.String),
        sa.Column("error", sa.Text),
        sa.Column("traceback", sa.Text),
        sqlite_autoincrement=True,
    )
    op.create_index("calls_kind", "calls", ["kind", "state"])
    op.create_index("calls_open", "calls", ["state"])
    op.create_index("calls_ready", "calls", ["sweep", "state", "waiting", "id"])
    op.create_index("ix_calls_batch", "calls", ["batch"])
    op.create_table(
        "waits",
        sa.Column("call", sa.Integer, primary_key=True),
        sa.Column("key", sa.String, primary_key=True),
    )
    op.create_index("waits_key", "waits", ["key"])
    op.create_table(
        "tasks",
        sa.Column("key", sa.String, primary_key=True),
        sa.Column("kind", sa.String, nullable=False),
        sa.Column("state", sa.String, nullable=False),
        sa.Column("call", sa.Integer, nullable=False),
        sa.Column("payload", sa.Text, nullable=False),
        sa.Column("blame", sa.String),
        sa.Column("bytes", sa.BigInteger),
        sa.Column("diverged", sa.Boolean, nullable=False),
    )
    op.create_index("ix_tasks_call", "tasks", ["call"])
    op.create_table(
        "stages",
        sa.Column("sweep", sa.String, primary_key=True),
        sa.Column("key", sa.String, primary_key=True),
        sa.Column("call", sa.Integer),
        sa.Column("state", sa.String, nullable=False),
    )
    op.create_index("ix_stages_call", "stages", ["call"])
    op.create_table(
        "cells",
        sa.Column("sweep", sa.String, primary_key=True),
        sa.Column("idx", sa.BigInteger, primary_key=True),
        sa.Column("key", sa.String, nullable=False),
        sa.Column("call", sa.Integer),
        sa.Column("state", sa.String, nullable=False),
    )
    op.create_index("cells_count", "cells", ["sweep", "state", "call"])
    op.create_index("ix_cells_call", "cells", ["call"])
    op.create_table(
        "needs",
        sa.Column("call", sa.Integer, primary_key=True),
        sa.Column("sweep", sa.String, primary_key=True),
        sa.Column("kind", sa.String, primary_key=True),
        sa.Column("open", sa.BigInteger, nullable=False),
    )
    op.create_index("needs_sweep", "needs", ["sweep"])
    op.create_table(
        "counts",
        sa.Column("sweep", sa.String, primary_key=True),
        sa.Column("kind", sa.String, primary_key=True),
        sa.Column("state", sa.String, primary_key=True),
        sa.Column("n", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "kind_totals",
        sa.Column("kind", sa.String, primary_key=True),
        sa.Column("tasks", sa.BigInteger, nullable=False),
        sa.Column("seconds", sa.Float, nullable=False),
        sa.Column("artifacts", sa.BigInteger, nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "events",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
        sa.Column("sweep", sa.String, nullable=False),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("type", sa.String, nullable=False),
        sa.Column("data", sa.Text, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("events_sweep", "events", ["sweep", "id"])
