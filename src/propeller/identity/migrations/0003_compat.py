"""Which clients are proplets that speak on the topics that absmach/propeller's share."""

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0003", "0002"


def upgrade() -> None:
    """None is, until it is marked."""
    op.add_column("clients", sa.Column("compat", sa.Boolean, nullable=False, server_default=sa.false()))
