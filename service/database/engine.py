"""Opening the database: SQLite in WAL mode by default, any SQLAlchemy URL otherwise."""

import sqlite3
import time

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import ConnectionPoolEntry

from service.database.counters import CountingSession
from service.settings import Settings

# Writers queue for SQLite's one write lock this long before "database is locked"; every write
# transaction of ours takes milliseconds, so only a stalled disk reaches it.
BUSY_TIMEOUT_S = 30.0
_WAL_RETRY_S = 0.01

_WRITES = "hairline_writes"


def open_engine(settings: Settings) -> Engine:
    """Return an engine for the configured database.

    Side effects: creates ``storage_dir`` when the database is the embedded one.
    """
    url = settings.resolved_database_url
    if not url.startswith("sqlite"):
        return create_engine(url, pool_pre_ping=True)
    if settings.database_url is None:
        settings.storage_dir.mkdir(parents=True, exist_ok=True)
    engine = create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_S})
    event.listen(engine, "connect", _configure_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def session_factory(engine: Engine, *, writes: bool = True) -> sessionmaker[Session]:
    """Return a factory of sessions whose transactions write, or (``writes=False``) only read.

    A writing transaction takes SQLite's write lock when it begins: one that begins as a reader and
    writes later fails at once with SQLITE_BUSY when another writer came in between, whatever the
    timeout is (https://www.sqlite.org/lang_transaction.html, "BEGIN IMMEDIATE").  A reading one
    never waits.  Keep slow work (decoding, hashing, files) out of a writing transaction.
    """
    if not writes:
        return sessionmaker(engine, expire_on_commit=False)
    return sessionmaker(write_connection(engine), class_=CountingSession, expire_on_commit=False)


def write_connection(engine: Engine) -> Engine:
    """Return ``engine`` so that each of its transactions begins as a writer."""
    return engine.execution_options(**{_WRITES: True})


def _configure_sqlite(connection: sqlite3.Connection, _entry: ConnectionPoolEntry) -> None:
    # The driver's own transaction handling begins late and commits around DDL; `_begin_sqlite`
    # replaces it.
    connection.isolation_level = None
    _enter_wal_mode(connection)
    for pragma in (
        # In WAL mode NORMAL loses no consistency, at most the last commits at a power cut.
        "PRAGMA synchronous=NORMAL",
        "PRAGMA foreign_keys=ON",
    ):
        connection.execute(pragma)


def _enter_wal_mode(connection: sqlite3.Connection) -> None:
    """Switch to WAL mode, waiting for another connection that is writing to a new database.

    The switch reads before it writes, and SQLite then fails at once where it would otherwise wait
    for the other writer (seen with 3.40 while several processes opened a new database together).
    """
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(_WAL_RETRY_S)
        else:
            return


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get(_WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN DEFERRED")
