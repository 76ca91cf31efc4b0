"""Sweeps are hidden until they are planned, and have an owner. Tasks keep parameters apart. People have tokens.

Cells are found by their state, in order.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add the columns and tables; every sweep of an older ledger is planned and has no owner."""
    op.add_column("sweeps", sa.Column("planned", sa.Boolean, nullable=False, server_default=sa.true()))
    op.add_column("sweeps", sa.Column("owner", sa.String))
    op.create_index("ix_sweeps_owner", "sweeps", ["owner"])
    op.alter_column("tasks", "payload", new_column_name="params")
    op.add_column("tasks", sa.Column("shared", sa.Text, nullable=False, server_default=""))
    sqlite = "UPDATE tasks SET shared = json_remove(params, '$.params'), params = json_extract(params, '$.params')"
    other = "UPDATE tasks SET shared = (params::jsonb - 'params')::text, params = (params::json -> 'params')::text"
    op.execute(sqlite if op.get_bind().dialect.name == "sqlite" else other)
    op.create_table(
        "tokens",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("hash", sa.String, unique=True, nullable=False),
        sa.Column("role", sa.String, nullable=False),
        sa.Column("max_open_cells", sa.BigInteger),
        sa.Column("max_priority", sa.Integer),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("expires_at", sa.Float),
        sa.Column("last_used_at", sa.Float),
        sa.Column("revoked_at", sa.Float),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "audit",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("actor", sa.String),
        sa.Column("request", sa.String),
        sa.Column("action", sa.String, nullable=False),
        sa.Column("target", sa.Text, nullable=False),
        sa.Column("outcome", sa.String, nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
        sqlite_autoincrement=True,
    )
    op.drop_index("cells_count", "cells")
    op.create_index("cells_in_state", "cells", ["sweep", "state", "idx", "call"])
    without_result = sa.text("state = 'failed' OR state = 'cancelled' OR state = 'skipped'")
    op.create_index(
        "stages_without_result",
        "stages",
        ["sweep", "state", "key", "call"],
        sqlite_where=without_result,
        postgresql_where=without_result,
    )
