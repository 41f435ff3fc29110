"""Whether an update's program says that it did its part of the strategy."""

from alembic import op
from sqlalchemy import Boolean, Column

revision, down_revision = "0005", "0004"


def upgrade() -> None:
    """Add a column to a table."""
    op.add_column("updates", Column("corrected", Boolean))
