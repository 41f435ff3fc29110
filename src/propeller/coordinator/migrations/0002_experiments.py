"""Experiments, their events, and what rounds and updates say of them."""

from alembic import op
from sqlalchemy import JSON, BigInteger, Boolean, Column, Double, ForeignKey, Integer, String

revision, down_revision = "0002", "0001"


def upgrade() -> None:
    """Create two tables, and add columns to two others."""
    op.create_table(
        "experiments",
        Column("id", String(128), primary_key=True),
        Column("spec", JSON, nullable=False),
        Column("state", String(16), nullable=False, index=True),
        Column("settled", Boolean, nullable=False, index=True),
        Column("program", String(512), nullable=False),
        Column("strategy", JSON, nullable=False),
        Column("progress", JSON, nullable=False),
        Column("created_at", Double, nullable=False, index=True),
        Column("started_at", Double),
        Column("ended_at", Double),
    )
    op.create_table(
        "experiment_events",
        Column("experiment_id", String(128), ForeignKey("experiments.id"), primary_key=True),
        Column("seq", BigInteger, primary_key=True, autoincrement=False),
        Column("kind", String(32), nullable=False),
        Column("at", Double, nullable=False),
        Column("data", JSON, nullable=False),
    )
    with op.batch_alter_table("rounds") as rounds:
        rounds.add_column(
            Column(
                "experiment_id",
                String(128),
                ForeignKey("experiments.id", name="rounds_experiment_id_fkey"),
            )
        )
        rounds.add_column(Column("number", Integer))
        rounds.add_column(Column("attempt", Integer))
        rounds.add_column(Column("kind", String(16)))
        rounds.add_column(Column("participants", JSON))
        rounds.add_column(Column("k_of_n", Integer))
        rounds.add_column(Column("started_at", Double))
        rounds.add_column(Column("strategy", JSON))
        rounds.add_column(Column("report", JSON))
    op.create_index("ix_rounds_experiment_id", "rounds", ["experiment_id"])
    op.add_column("updates", Column("steps", BigInteger))
    op.add_column("updates", Column("kind", String(16)))
