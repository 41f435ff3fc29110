"""Since when the clients of MQTT sessions are away is kept."""

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0002", "0001"


def upgrade() -> None:
    """Of no client is it known yet: it counts from the first look at the sessions."""
    op.create_table(
        "mqtt_absences",
        sa.Column("mqtt_id", sa.String(256), primary_key=True),
        sa.Column("since", sa.Float, nullable=False),
    )
