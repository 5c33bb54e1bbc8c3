"""For whom quotas are pooled."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add the column to the jobs."""
    op.add_column("jobs", sa.Column("lease_json", sa.Text, nullable=False, server_default=""))
