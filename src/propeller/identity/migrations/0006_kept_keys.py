"""Keys of clients that admins may read again."""

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0006", "0005"


def upgrade() -> None:
    """Keys from before are not kept."""
    op.create_table(
        "kept_keys",
        sa.Column("client_id", sa.String(128), sa.ForeignKey("clients.id"), primary_key=True),
        sa.Column("sealed", sa.String(1024), nullable=False),
    )
