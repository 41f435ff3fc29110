"""Tasks for every proplet, which have a task for each as parts."""

from alembic import op
from sqlalchemy import Column, String

revision, down_revision = "0003", "0002"


def upgrade() -> None:
    """Have a part name its task."""
    op.add_column("tasks", Column("parent_id", String(128)))
    op.create_index("ix_tasks_parent_id", "tasks", ["parent_id"])
