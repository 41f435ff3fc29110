"""Tokens by which devices join."""

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0005", "0004"


def upgrade() -> None:
    """Clients from before have none."""
    op.create_table(
        "join_tokens",
        sa.Column("client_id", sa.String(128), sa.ForeignKey("clients.id"), primary_key=True),
        sa.Column("channel_id", sa.String(128), sa.ForeignKey("channels.id"), nullable=False),
        sa.Column("secret_hash", sa.String(64), nullable=False, unique=True),
        sa.Column("expires_at", sa.Float, nullable=False),
        sa.Column("used_at", sa.Float),
    )
