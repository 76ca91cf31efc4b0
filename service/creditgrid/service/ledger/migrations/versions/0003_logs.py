"""Calls have logs."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add the columns and tables; calls of an older ledger have a log if they are open."""
    op.add_column("calls", sa.Column("log", sa.String))
    op.create_index("ix_calls_log", "calls", ["log"])
    sqlite = "UPDATE calls SET log = lower(hex(randomblob(16))) WHERE state IN ('pending', 'queued', 'running')"
    other = "UPDATE calls SET log = md5(random()::text || id) WHERE state IN ('pending', 'queued', 'running')"
    op.execute(sqlite if op.get_bind().dialect.name == "sqlite" else other)
    op.create_table(
        "earlier_logs",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("call", sa.Integer, nullable=False),
        sa.Column("log", sa.String, nullable=False),
    )
    op.create_index("ix_earlier_logs_call", "earlier_logs", ["call"])
