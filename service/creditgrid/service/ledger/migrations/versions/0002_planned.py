"""Sweeps are invisible while they are planned, and say who submitted them. Tasks keep their parameters apart."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add the columns; every sweep of an older ledger is planned and has no owner."""
    op.add_column("sweeps", sa.Column("planned", sa.Boolean, nullable=False, server_default=sa.true()))
    op.add_column("sweeps", sa.Column("owner", sa.String))
    op.alter_column("tasks", "payload", new_column_name="params")
    op.add_column("tasks", sa.Column("shared", sa.Text, nullable=False, server_default=""))
    sqlite = "UPDATE tasks SET shared = json_remove(params, '$.params'), params = json_extract(params, '$.params')"
    other = "UPDATE tasks SET shared = (params::jsonb - 'params')::text, params = (params::json -> 'params')::text"
    op.execute(sqlite if op.get_bind().dialect.name == "sqlite" else other)
