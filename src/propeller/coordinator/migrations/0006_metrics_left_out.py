"""The metrics of an update that are no numbers."""

from alembic import op
from sqlalchemy import JSON, Column

revision, down_revision = "0006", "0005"


def upgrade() -> None:
    """Add a column to a table."""
    op.add_column("updates", Column("metrics_left_out", JSON(none_as_null=True)))
