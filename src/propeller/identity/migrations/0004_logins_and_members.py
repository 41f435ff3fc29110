"""Logins, whose refresh tokens are good once, and the members of domains."""

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0004", "0003"


def upgrade() -> None:
    """Tokens from before belong to no login, and are not good any more: users log in again."""
    op.create_table(
        "logins",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("user_id", sa.String(36), sa.ForeignKey("users.id"), nullable=False),
        sa.Column("token_id", sa.String(36), nullable=False),
        sa.Column("expires_at", sa.Float, nullable=False),
    )
    op.create_index("logins_user", "logins", ["user_id"])
    op.create_table(
        "members",
        sa.Column("domain_id", sa.String(36), sa.ForeignKey("domains.id"), primary_key=True),
        sa.Column("user_id", sa.String(36), sa.ForeignKey("users.id"), primary_key=True),
        sa.Column("role", sa.String(16), nullable=False),
    )
