"""Runs, artifacts and their files, lineage edges, events, remembered values and tokens.

History is append-only in the database itself: triggers refuse to change or delete events, artifacts, their files and
lineage edges, whoever asks.
"""

import uuid

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

FROZEN = ("events", "artifacts", "files", "edges")
counter = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    """Make the tables and the triggers, and name this database for good."""
    _runs()
    _artifacts()
    _lineage_and_events()
    _memory_and_tokens()
    facts = op.create_table(
        "store_facts",
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("value", sa.Text, nullable=False),
    )
    op.bulk_insert(facts, [{"key": "id", "value": uuid.uuid4().hex}])
    for table in FROZEN:
        _freeze(table)


def _runs() -> None:
    op.create_table(
        "runs",
        sa.Column("id", sa.Text, primary_key=True),
        *_texts("workspace", "kind", "name", "state", "config_json", "environment_json", "code"),
        sa.Column("seed", sa.BigInteger, nullable=False),
        sa.Column("created_s", sa.Float(53), nullable=False),
        sa.Column("started_s", sa.Float(53)),
        sa.Column("ended_s", sa.Float(53)),
        *_texts("reason", "owner_json"),
    )
    op.create_index("runs_newest", "runs", ["workspace", "created_s"])
    op.create_index("runs_by_state", "runs", ["workspace", "state"])


def _artifacts() -> None:
    op.create_table(
        "artifacts",
        sa.Column("id", counter, primary_key=True, autoincrement=True),
        *_texts("workspace", "kind", "name"),
        sa.Column("version", sa.Integer, nullable=False),
        *_texts("digest"),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("created_s", sa.Float(53), nullable=False),
        *_texts("meta_json", "run"),
        sa.UniqueConstraint("workspace", "kind", "name", "version", name="artifacts_version"),
        sa.UniqueConstraint("workspace", "kind", "name", "digest", name="artifacts_content"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "files",
        sa.Column("artifact", counter, sa.ForeignKey("artifacts.id", name="files_artifact"), nullable=False),
        *_texts("path", "digest"),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("artifact", "path", name="files_key"),
    )
    op.create_index("files_digest", "files", ["digest"])
    op.create_table(
        "tags",
        *_texts("workspace", "kind", "name", "tag"),
        sa.Column("version", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("workspace", "kind", "name", "tag", name="tags_key"),
    )


def _lineage_and_events() -> None:
    op.create_table(
        "edges",
        sa.Column("run", sa.Text, sa.ForeignKey("runs.id", name="edges_run"), nullable=False),
        *_texts("ref", "role"),
        sa.PrimaryKeyConstraint("run", "ref", "role", name="edges_key"),
    )
    op.create_index("edges_ref", "edges", ["ref"])
    op.create_table(
        "events",
        sa.Column("seq", counter, primary_key=True, autoincrement=True),
        *_texts("workspace"),
        sa.Column("time_s", sa.Float(53), nullable=False),
        *_texts("kind", "subject", "data_json"),
        sqlite_autoincrement=True,
    )
    op.create_index("events_by_subject", "events", ["workspace", "subject", "seq"])
    op.create_index("events_by_kind", "events", ["workspace", "kind", "seq"])


def _memory_and_tokens() -> None:
    op.create_table(
        "memory",
        *_texts("workspace", "key", "value_json"),
        sa.Column("updated_s", sa.Float(53), nullable=False),
        sa.PrimaryKeyConstraint("workspace", "key", name="memory_key"),
    )
    op.create_table(
        "tokens",
        *_texts("workspace", "name", "role", "hash"),
        sa.Column("created_s", sa.Float(53), nullable=False),
        sa.Column("expires_s", sa.Float(53)),
        sa.PrimaryKeyConstraint("workspace", "name", name="tokens_key"),
        sa.UniqueConstraint("hash", name="tokens_hash"),
    )


def _texts(*names: str) -> list[sa.Column[str]]:
    return [sa.Column(name, sa.Text, nullable=False) for name in names]


def _freeze(table: str) -> None:
    refusal = f"{table} is append-only"
    if op.get_bind().dialect.name == "sqlite":
        for verb in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER {table}_no_{verb.lower()} BEFORE {verb} ON {table} "
                f"BEGIN SELECT RAISE(ABORT, '{refusal}'); END"
            )
        return
    op.execute(
        f"CREATE FUNCTION {table}_refuse() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN RAISE EXCEPTION '{refusal}'; END $$"
    )
    op.execute(
        f"CREATE TRIGGER {table}_frozen BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} "
        f"FOR EACH STATEMENT EXECUTE FUNCTION {table}_refuse()"
    )
