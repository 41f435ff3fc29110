"""How updates came: in how many bytes, and what compression left out."""

from alembic import op
from sqlalchemy import BigInteger, Column, Double, String

revision, down_revision = "0003", "0002"


def upgrade() -> None:
    """Add columns to a table."""
    op.add_column("updates", Column("received_bytes", BigInteger))
    op.add_column("updates", Column("uncompressed_bytes", BigInteger))
    op.add_column("updates", Column("compression", String(64)))
    op.add_column("updates", Column("compression_error", Double))
