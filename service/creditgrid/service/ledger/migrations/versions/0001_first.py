"""The first schema that alembic knows."""

from alembic import op

from creditgrid.service.ledger.tables import metadata

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create all tables."""
    metadata.create_all(op.get_bind())
