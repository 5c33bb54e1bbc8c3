"""Who has to leave his places, since when he holds them, and when he last saved what he has."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add the columns to the jobs."""
    op.add_column("jobs", sa.Column("evicted", sa.Text, nullable=False, server_default=""))
    for name in ("started_s", "saved_s"):
        op.add_column("jobs", sa.Column(name, sa.Float(53), nullable=False, server_default="0"))
