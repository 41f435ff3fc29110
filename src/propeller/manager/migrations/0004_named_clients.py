"""What identity calls the proplets of the channel."""

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0004", "0003"


def upgrade() -> None:
    """Nothing is known of that, until identity is asked."""
    op.create_table(
        "named_clients",
        sa.Column("id", sa.String(128), primary_key=True),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("tags", sa.JSON, nullable=False),
    )
