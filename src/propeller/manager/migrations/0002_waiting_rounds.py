"""Rounds of experiments that wait for their participants."""

from alembic import op
from sqlalchemy import JSON, BigInteger, Column, String

revision, down_revision = "0002", "0001"


def upgrade() -> None:
    """Create their table."""
    op.create_table(
        "waiting_rounds",
        Column("round_id", String(128), primary_key=True),
        Column("start", JSON(none_as_null=True), nullable=False),
        Column("since", BigInteger, nullable=False),
    )
