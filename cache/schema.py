"""The tables of a cache file, and how a file of any age gets to them.

Migrations only ever grow at the end: what once created somebody's file is never edited. A test
holds the columns against the dataclasses of ``rows.py``.
"""

from __future__ import annotations

import sqlite3

from ..errors import CacheError
from .transaction import immediate

#: ``CLKN`` in the file's header says whose it is (SQLite's ``application_id``).
APPLICATION_ID = 0x434C4B4E
#: STRICT tables came with this version of SQLite.
OLDEST_SQLITE = (3, 37, 0)
TABLES = ("drivers", "runs", "trials", "best", "binaries", "facts")

_VERSION_1 = (
    """
    CREATE TABLE drivers (
        driver TEXT PRIMARY KEY NOT NULL,
        info TEXT NOT NULL,
        first_seen TEXT NOT NULL
    ) STRICT
    """,
    """
    CREATE TABLE runs (
        id INTEGER PRIMARY KEY,
        model TEXT NOT NULL,
        level TEXT NOT NULL,
        driver TEXT NOT NULL,
        budget REAL,
        started TEXT NOT NULL,
        ended TEXT,
        seconds REAL,
        result TEXT NOT NULL
    ) STRICT
    """,
    """
    CREATE TABLE trials (
        id INTEGER PRIMARY KEY,
        workload TEXT NOT NULL,
        driver TEXT NOT NULL,
        digest TEXT NOT NULL,
        config TEXT NOT NULL,
        status TEXT NOT NULL,
        time REAL,
        spread REAL,
        repeats INTEGER NOT NULL,
        compile_time REAL,
        error REAL,
        message TEXT NOT NULL,
        layout TEXT,
        run INTEGER,
        created TEXT NOT NULL
    ) STRICT
    """,
    """
    CREATE TABLE best (
        workload TEXT NOT NULL,
        driver TEXT NOT NULL,
        digest TEXT NOT NULL,
        config TEXT NOT NULL,
        time REAL NOT NULL,
        default_time REAL,
        layout TEXT,
        complete INTEGER NOT NULL CHECK (complete IN (0, 1)),
        updated TEXT NOT NULL,
        PRIMARY KEY (workload, driver, digest)
    ) STRICT
    """,
    """
    CREATE TABLE binaries (
        key TEXT PRIMARY KEY NOT NULL,
        label TEXT NOT NULL,
        size INTEGER NOT NULL,
        driver TEXT NOT NULL,
        created TEXT NOT NULL,
        sha256 TEXT NOT NULL,
        payload BLOB NOT NULL
    ) STRICT
    """,
    """
    CREATE TABLE facts (
        name TEXT NOT NULL,
        driver TEXT NOT NULL,
        value TEXT NOT NULL,
        updated TEXT NOT NULL,
        PRIMARY KEY (name, driver)
    ) STRICT
    """,
    "CREATE INDEX trials_of_workload ON trials (workload, driver, digest)",
    """
    CREATE VIEW best_per_workload AS
    SELECT workload, config, layout, time, default_time, default_time / time AS speedup, complete,
           (SELECT count(*) FROM trials t WHERE t.workload = b.workload
               AND t.driver = b.driver AND t.digest = b.digest) AS trials,
           driver, digest, updated
      FROM (SELECT *, row_number() OVER (PARTITION BY workload ORDER BY updated DESC, rowid DESC)
                      AS place FROM best) b
     WHERE place = 1
     ORDER BY workload
    """,
    """
    CREATE VIEW trials_by_status AS
    SELECT driver, status, count(*) AS trials, count(DISTINCT workload) AS workloads,
           total(compile_time) AS compile_seconds
      FROM trials
     GROUP BY driver, status
     ORDER BY driver, trials DESC
    """,
)

#: When a program was last taken from the file, to the day; what is used least is pruned first.
_VERSION_2 = ("ALTER TABLE binaries ADD COLUMN used TEXT NOT NULL DEFAULT ''",)

MIGRATIONS: tuple[tuple[str, ...], ...] = (_VERSION_1, _VERSION_2)


def latest() -> int:
    """The schema version that this clkiln writes."""
    return len(MIGRATIONS)


def identity(connection: sqlite3.Connection) -> tuple[int, int]:
    """``(application_id, user_version)`` from the header; an empty file has zeros."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return application, version


def migrate(connection: sqlite3.Connection) -> None:
    """Bring the file to the latest schema, in one transaction that takes the write lock first.

    Of several processes that start at once one migrates; the others wait for the lock and then
    find nothing to do. Raises :class:`CacheError` for a file of somebody else or of a newer clkiln,
    and ``sqlite3.Error`` for anything else; both leave the file as it was.
    """
    with immediate(connection):
        # Only now does nobody else change it: what was read before the lock may be out of date.
        application, version = identity(connection)
        if application or _objects(connection):
            check_identity(application, version)
        for statement in (s for step in MIGRATIONS[version:] for s in step):
            connection.execute(_for_this_sqlite(statement))
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {latest()}")


def check_identity(application: int, version: int) -> None:
    """Raise :class:`CacheError` unless such a file is ours and of a schema known here."""
    if application != APPLICATION_ID:
        raise CacheError("is not a cache file of clkiln: name another one")
    if version > latest():
        raise CacheError(
            f"has schema {version}, this clkiln knows schemas up to {latest()}:"
            " update clkiln, or name another file"
        )
    if version < 1:
        raise CacheError("is damaged (schema version lost): delete it to start afresh")


def check_current(application: int, version: int) -> None:
    """Raise :class:`CacheError` unless such a file can be read as it is."""
    check_identity(application, version)
    if version < latest():
        raise CacheError(
            f"has the old schema {version}: open it for writing once, which brings it to {latest()}"
        )


def check_tables(connection: sqlite3.Connection) -> None:
    """Raise :class:`CacheError` if a table is missing, as only damage makes it."""
    missing = set(TABLES) - _objects(connection)
    if missing:
        raise CacheError(
            f"is damaged (no table {', '.join(sorted(missing))}): delete it to start afresh"
        )


def _objects(connection: sqlite3.Connection) -> set[str]:
    return {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}


def _for_this_sqlite(statement: str) -> str:
    # Only a store in memory gets here with an older SQLite: it loses type checks, nothing else.
    if sqlite3.sqlite_version_info < OLDEST_SQLITE:
        return statement.replace(") STRICT", ")")
    return statement
