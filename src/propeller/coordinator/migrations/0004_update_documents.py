"""The documents of small updates, which were files until then and are found there still."""

from alembic import op
from sqlalchemy import Column, LargeBinary, String

revision, down_revision = "0004", "0003"


def upgrade() -> None:
    """Create a table."""
    op.create_table(
        "update_documents",
        Column("digest", String(64), primary_key=True),
        Column("content", LargeBinary, nullable=False),
    )
