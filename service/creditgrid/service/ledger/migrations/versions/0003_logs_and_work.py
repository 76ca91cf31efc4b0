"""Calls have logs and work, sweeps a backlog, and the last calls of each kind are kept instead of means by kind."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add the columns and tables; calls of an older ledger have a log if they are open, and their work is unknown."""
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
    for name in ("launches", "flops", "elements"):
        op.add_column("calls", sa.Column(name, sa.Float))
    op.add_column("calls", sa.Column("level", sa.Integer, nullable=False, server_default="0"))
    op.add_column("calls", sa.Column("scale", sa.Integer, nullable=False, server_default="-1"))
    op.add_column("sweeps", sa.Column("resources", sa.Text))
    op.create_table(
        "backlog",
        sa.Column("sweep", sa.String, primary_key=True),
        sa.Column("kind", sa.String, primary_key=True),
        sa.Column("level", sa.Integer, primary_key=True),
        sa.Column("scale", sa.Integer, primary_key=True),
        sa.Column("planned", sa.BigInteger, nullable=False),
        sa.Column("open", sa.BigInteger, nullable=False),
        sa.Column("launches", sa.Float, nullable=False),
        sa.Column("flops", sa.Float, nullable=False),
        sa.Column("elements", sa.Float, nullable=False),
    )
    # Calls of open sweeps, as ``counts.recount_backlog`` counts them.
    op.execute(
        "INSERT INTO backlog (sweep, kind, level, scale, planned, open, launches, flops, elements) "
        "SELECT need.sweep, calls.kind, 0, -1, count(*), count(*), 0, 0, 0 "
        "FROM (SELECT DISTINCT needs.call, needs.sweep FROM needs JOIN sweeps ON sweeps.id = needs.sweep "
        "WHERE sweeps.planned) AS need JOIN calls ON calls.id = need.call GROUP BY need.sweep, calls.kind"
    )
    op.create_table(
        "past_calls",
        sa.Column("kind", sa.String, primary_key=True),
        sa.Column("device", sa.String, primary_key=True),
        sa.Column("slot", sa.Integer, primary_key=True),
        sa.Column("launches", sa.Float),
        sa.Column("flops", sa.Float),
        sa.Column("elements", sa.Float),
        sa.Column("tasks", sa.BigInteger, nullable=False),
        sa.Column("seconds", sa.Float, nullable=False),
        sa.Column("artifacts", sa.BigInteger, nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("at", sa.Float, nullable=False),
    )
    op.drop_table("kind_totals")
