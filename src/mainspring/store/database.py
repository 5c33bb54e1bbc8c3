"""The tables, and one way to read and write them on SQLite and PostgreSQL.

Both databases are driven with one writer at a time: SQLite through `BEGIN IMMEDIATE`, PostgreSQL through an advisory
lock that dies with its transaction. Metadata writes are small (well under a millisecond), so a queue of writers
costs little and buys three things: the same behaviour on both, versions without gaps, and events whose
sequence is their commit order, so that a reader who remembers the last number never misses one. A lock cannot
outlive the process that took it: SQLite's is a file lock, PostgreSQL's falls with the connection, and a session that
holds it without doing anything is ended by the server after `IDLE_S`.
"""

import functools
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal, Self

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Engine,
    Executable,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    UniqueConstraint,
    create_engine,
    event,
    func,
    inspect,
    make_url,
    select,
    text,
)
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from mainspring.spec import Settings, SpecError, Unavailable
from mainspring.store.lock import file_lock

HEAD = "0004"
"""The newest migration; a test holds it equal to what Alembic finds in `migrations/versions`."""

BUSY_S = 30
IDLE_S = 300
WRITER_LOCK = 0x6D61696E  # "main"

TAKE_TURN = select(func.pg_advisory_xact_lock(WRITER_LOCK))

metadata = MetaData()
# SQLite keeps row numbers in INTEGER columns only; elsewhere a 32-bit counter of events would run out.
counter = BigInteger().with_variant(Integer, "sqlite")

store_facts = Table(
    "store_facts",
    metadata,
    Column("key", Text, primary_key=True),
    Column("value", Text, nullable=False),
)
runs = Table(
    "runs",
    metadata,
    Column("id", Text, primary_key=True),
    Column("workspace", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("config_json", Text, nullable=False),
    Column("environment_json", Text, nullable=False),
    Column("code", Text, nullable=False),
    Column("seed", BigInteger, nullable=False),
    Column("created_s", Float(53), nullable=False),
    Column("started_s", Float(53)),
    Column("ended_s", Float(53)),
    Column("reason", Text, nullable=False),
    Column("owner_json", Text, nullable=False),
    Index("runs_newest", "workspace", "created_s"),
    Index("runs_by_state", "workspace", "state"),
)
artifacts = Table(
    "artifacts",
    metadata,
    Column("id", counter, primary_key=True, autoincrement=True),
    Column("workspace", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("version", Integer, nullable=False),
    Column("digest", Text, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("created_s", Float(53), nullable=False),
    Column("meta_json", Text, nullable=False),
    Column("run", Text, nullable=False),
    UniqueConstraint("workspace", "kind", "name", "version", name="artifacts_version"),
    UniqueConstraint("workspace", "kind", "name", "digest", name="artifacts_content"),
    sqlite_autoincrement=True,
)
files = Table(
    "files",
    metadata,
    Column("artifact", counter, ForeignKey("artifacts.id", name="files_artifact"), nullable=False),
    Column("path", Text, nullable=False),
    Column("digest", Text, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    PrimaryKeyConstraint("artifact", "path", name="files_key"),
    Index("files_digest", "digest"),
)
tags = Table(
    "tags",
    metadata,
    Column("workspace", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("tag", Text, nullable=False),
    Column("version", Integer, nullable=False),
    PrimaryKeyConstraint("workspace", "kind", "name", "tag", name="tags_key"),
)
edges = Table(
    "edges",
    metadata,
    Column("run", Text, ForeignKey("runs.id", name="edges_run"), nullable=False),
    Column("ref", Text, nullable=False),
    Column("role", Text, nullable=False),
    PrimaryKeyConstraint("run", "ref", "role", name="edges_key"),
    Index("edges_ref", "ref"),
)
events = Table(
    "events",
    metadata,
    Column("seq", counter, primary_key=True, autoincrement=True),
    Column("workspace", Text, nullable=False),
    Column("time_s", Float(53), nullable=False),
    Column("kind", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("data_json", Text, nullable=False),
    Index("events_by_subject", "workspace", "subject", "seq"),
    Index("events_by_kind", "workspace", "kind", "seq"),
    sqlite_autoincrement=True,
)
memory = Table(
    "memory",
    metadata,
    Column("workspace", Text, nullable=False),
    Column("key", Text, nullable=False),
    Column("value_json", Text, nullable=False),
    Column("updated_s", Float(53), nullable=False),
    PrimaryKeyConstraint("workspace", "key", name="memory_key"),
)
tokens = Table(
    "tokens",
    metadata,
    Column("workspace", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("hash", Text, nullable=False),
    Column("created_s", Float(53), nullable=False),
    Column("expires_s", Float(53)),
    PrimaryKeyConstraint("workspace", "name", name="tokens_key"),
    UniqueConstraint("hash", name="tokens_hash"),
)
jobs = Table(
    "jobs",
    metadata,
    Column("number", counter, primary_key=True, autoincrement=True),
    Column("workspace", Text, nullable=False),
    Column("id", Text, nullable=False),
    Column("job_json", Text, nullable=False),
    Column("address", Text, nullable=False),
    Column("cluster", Text, nullable=False),
    Column("driver", Text, nullable=False),
    Column("lasting", Integer, nullable=False),
    Column("state", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("losses", Integer, nullable=False),
    Column("placement_json", Text, nullable=False),
    Column("result_json", Text, nullable=False),
    Column("cancelled", Text, nullable=False),
    Column("evicted", Text, nullable=False, server_default=""),
    Column("started_s", Float(53), nullable=False, server_default="0"),
    Column("saved_s", Float(53), nullable=False, server_default="0"),
    Column("lease_json", Text, nullable=False, server_default=""),
    UniqueConstraint("workspace", "id", name="jobs_id"),
    Index("jobs_by_state", "state", "cluster"),
    sqlite_autoincrement=True,
)
drivers = Table(
    "drivers",
    metadata,
    Column("id", Text, primary_key=True),
    Column("cluster", Text, nullable=False),
    Column("owner_json", Text, nullable=False),
    Column("beat", BigInteger, nullable=False),
)
nodes = Table(
    "nodes",
    metadata,
    Column("cluster", Text, nullable=False),
    Column("node", Text, nullable=False),
    Column("closed", Integer, nullable=False),
    Column("sick_json", Text, nullable=False),
    Column("reason", Text, nullable=False),
    PrimaryKeyConstraint("cluster", "node", name="nodes_key"),
)


Durability = Literal["process", "power"]


class Database:
    """An open database: `read()` and `transaction()`, migrated to `HEAD`."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.home: Path = settings.home_path
        self.workspace = settings.workspace
        self._open_transaction = threading.local()
        url = _url(settings)
        try:
            self.home.mkdir(parents=True, exist_ok=True)
            if url.get_backend_name() == "sqlite":
                Path(str(url.database)).parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Unavailable(
                f"cannot make {error.filename}: {error.strerror}", hint="point MAINSPRING_HOME at a writable folder"
            ) from error
        self._engine = _engine(url)
        try:
            self._migrate()
        except BaseException:
            self._engine.dispose()
            raise

    @classmethod
    def open(cls, settings: Settings) -> Self:
        """Open (and on first use create) what `settings` names; several processes may do so at once.

        Raises `SpecError` for a database URL that cannot be understood or is newer than this program, and
        `Unavailable` for one that does not answer or a folder that cannot be written.
        """
        return cls(settings)

    @functools.cached_property
    def id(self) -> str:
        """What this database is called for good, wherever it is reached from."""
        with self.read() as connection:
            return connection.execute(select(store_facts.c.value).where(store_facts.c.key == "id")).scalar_one()

    def close(self) -> None:
        """Close every connection. Closing twice is harmless."""
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection on one consistent snapshot; inside `transaction()` the transaction's own."""
        joined: Connection | None = getattr(self._open_transaction, "connection", None)
        if joined is not None:
            yield joined
            return
        with _translated(self._engine.url), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def transaction(self, *, durability: Durability = "process") -> Iterator[Connection]:
        """The only writer until the block ends: everything in it is committed together or not at all.

        `durability` says what a finished commit survives: the death of any process, or a power cut too. The latter
        costs a disk flush, 4 ms on a busy virtual machine, and makes all earlier commits as durable.

        Blocks nest within a thread: an inner one joins the outer, so that callers may group several of the store's
        verbs into one commit. A verb that fails inside takes the whole group down, even when its error is caught:
        committing the group without it would break the promise above, and a savepoint per verb costs 0.1 ms.
        """
        joined: Connection | None = getattr(self._open_transaction, "connection", None)
        if joined is not None:
            try:
                yield joined
            except BaseException:
                self._open_transaction.doomed = True
                raise
            return
        with _translated(self._engine.url), self._engine.connect() as plain:
            connection = plain.execution_options(writer=True, durability=durability)
            with connection.begin():
                if connection.dialect.name == "postgresql":
                    connection.execute(TAKE_TURN)
                self._open_transaction.connection, self._open_transaction.doomed = connection, False
                try:
                    yield connection
                finally:
                    self._open_transaction.connection = None
                if self._open_transaction.doomed:
                    raise RuntimeError("a part of this transaction failed and the failure was swallowed")

    def _migrate(self) -> None:
        with _translated(self._engine.url), self._first_opener():
            if self._revision() == HEAD:
                return
            from mainspring.store.migrate import upgrade

            with self.transaction() as connection:
                upgrade(connection)

    def _first_opener(self) -> AbstractContextManager[None]:
        """Held while SQLite's journal mode and schema may change; WAL cannot be switched on inside a transaction."""
        if self._engine.dialect.name != "sqlite":
            return nullcontext()
        return file_lock(Path(f"{self._engine.url.database}.lock"))

    def _revision(self) -> str | None:
        with self._engine.connect() as connection:
            if not inspect(connection).has_table("alembic_version"):
                return None
            found: str | None = connection.execute(text("select version_num from alembic_version")).scalar()
        if found is not None and found > HEAD:
            raise SpecError(
                f"the database is at revision {found}, this program knows up to {HEAD}",
                hint="install the newer mainspring that wrote it",
            )
        return found


def insert_or_update(connection: Connection, table: Table, *, key: tuple[str, ...], values: Mapping[str, Any]) -> None:
    """Insert `values`, or overwrite the row whose `key` columns are equal, in one statement."""
    connection.execute(_upsert(connection.dialect.name, table, key, tuple(values)), dict(values))


@functools.cache
def _upsert(dialect: str, table: Table, key: tuple[str, ...], names: tuple[str, ...]) -> Executable:
    if dialect == "postgresql":
        from sqlalchemy.dialects.postgresql import insert
    else:
        from sqlalchemy.dialects.sqlite import insert
    row = insert(table)
    rest = {name: row.excluded[name] for name in names if name not in key}
    if not rest:
        return row.on_conflict_do_nothing(index_elements=list(key))
    return row.on_conflict_do_update(index_elements=list(key), set_=rest)


def _url(settings: Settings) -> URL:
    given = settings.database
    if not settings.database_url:  # a path, whatever characters it holds
        return URL.create("sqlite", database=given.removeprefix("sqlite:///"))
    try:
        url = make_url(given)
        if url.get_backend_name() == "postgresql" and url.drivername == "postgresql":
            url = url.set(drivername="postgresql+psycopg")
        url.get_dialect()
    except (ArgumentError, NoSuchModuleError) as error:
        raise SpecError(
            "cannot understand the database URL",  # which is not repeated here: it may hold a password
            hint="write sqlite:////path/to/file.db or postgresql://user@host/name",
        ) from error
    if url.get_backend_name() not in ("sqlite", "postgresql"):
        raise SpecError(f"{url.get_backend_name()!r} is not supported", hint="use SQLite or PostgreSQL")
    if url.get_backend_name() == "sqlite" and url.database in (None, "", ":memory:"):
        raise SpecError("a database in memory cannot be shared", hint="name a file")
    return url


def _engine(url: URL) -> Engine:
    try:
        engine = create_engine(url, pool_size=8, max_overflow=56, pool_pre_ping=url.get_backend_name() != "sqlite")
    except ModuleNotFoundError as error:
        raise Unavailable(
            f"the driver of {url.drivername} is missing", hint='pip install "mainspring[postgres]"'
        ) from error
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    else:
        event.listen(engine, "connect", _prepare_postgres)
    return engine


def _prepare_sqlite(raw: Any, _record: object) -> None:
    raw.isolation_level = None  # transactions are begun by `_begin_sqlite`, not guessed by the driver
    raw.execute(f"PRAGMA busy_timeout = {BUSY_S * 1000}")
    raw.execute("PRAGMA foreign_keys = ON")
    if raw.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        raw.execute("PRAGMA journal_mode = WAL")


def _begin_sqlite(connection: Connection) -> None:
    options = connection.get_execution_options()
    if not options.get("writer", False):
        connection.exec_driver_sql("BEGIN")
        return
    connection.exec_driver_sql(f"PRAGMA synchronous = {'FULL' if options['durability'] == 'power' else 'NORMAL'}")
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _prepare_postgres(raw: Any, _record: object) -> None:
    with raw.cursor() as cursor:
        cursor.execute(f"SET lock_timeout = '{BUSY_S}s'")
        cursor.execute(f"SET idle_in_transaction_session_timeout = '{IDLE_S}s'")
    raw.commit()


@contextmanager
def _translated(url: URL) -> Iterator[None]:
    try:
        yield
    except SQLAlchemyError as error:
        where = url.render_as_string(hide_password=True)
        said = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
        raise Unavailable(f"the database at {where} says: {said}", hint=_hint(said)) from error


def _hint(said: str) -> str:
    for sign, hint in (
        ("locked", "another process is writing; try again"),
        ("lock timeout", "another process is writing; try again"),
        ("full", "free some disk space and try again"),
        ("disk I/O", "the disk may be full or failing; free some space and try again"),
        ("No space", "free some disk space and try again"),
        ("readonly", "the database file must be writable"),
        ("unable to open", "check that the folder exists and is writable"),
        ("not a database", "the file is something else; move it away or name another"),
        ("onnect", "is the server running, and are host, port and password right?"),
    ):
        if sign in said:
            return hint
    return "run `mainspring doctor`"
