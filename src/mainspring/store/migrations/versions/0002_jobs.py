"""Jobs and where they run, the processes that see to them, and what is known of nodes."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

counter = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    """Make the three tables."""
    op.create_table(
        "jobs",
        sa.Column("number", counter, primary_key=True, autoincrement=True),
        *_texts("workspace", "id", "job_json", "address", "cluster", "driver"),
        sa.Column("lasting", sa.Integer, nullable=False),
        *_texts("state", "reason"),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("losses", sa.Integer, nullable=False),
        *_texts("placement_json", "result_json", "cancelled"),
        sa.UniqueConstraint("workspace", "id", name="jobs_id"),
        sqlite_autoincrement=True,
    )
    op.create_index("jobs_by_state", "jobs", ["state", "cluster"])
    op.create_table(
        "drivers",
        sa.Column("id", sa.Text, primary_key=True),
        *_texts("cluster", "owner_json"),
        sa.Column("beat", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "nodes",
        *_texts("cluster", "node"),
        sa.Column("closed", sa.Integer, nullable=False),
        *_texts("sick_json", "reason"),
        sa.PrimaryKeyConstraint("cluster", "node", name="nodes_key"),
    )


def _texts(*names: str) -> list[sa.Column[str]]:
    return [sa.Column(name, sa.Text, nullable=False) for name in names]
