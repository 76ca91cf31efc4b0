"""Sweeps are invisible while they are planned, and say who submitted them."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add the columns; every sweep of an older ledger is planned and has no owner."""
    op.add_column("sweeps", sa.Column("planned", sa.Boolean, nullable=False, server_default=sa.true()))
    op.add_column("sweeps", sa.Column("owner", sa.String))
