"""Connections to a cache file: made safe, and never to a file that is not ours."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import stat
import tempfile
import time
from pathlib import Path

from .. import trust
from ..errors import CacheError
from . import schema

#: Seconds to wait for another process's transaction.
BUSY_TIMEOUT = 5.0
#: Further looks at a header that names no owner, a hundredth of a second apart.
LOOKS = 20

#: What a file can make SQLite raise: a message that quotes damaged text may not even be UTF-8.
FAULTS = (sqlite3.Error, UnicodeDecodeError)

_REASONS = {
    sqlite3.SQLITE_BUSY: "is locked by another process: wait for it, or end it",
    sqlite3.SQLITE_LOCKED: "is locked by another process: wait for it, or end it",
    sqlite3.SQLITE_FULL: "could not be written, the disk is full: make room",
    sqlite3.SQLITE_READONLY: "could not be written: make it and its folder writable",
    sqlite3.SQLITE_CANTOPEN: "could not be opened: make it and its folder writable",
    sqlite3.SQLITE_PERM: "could not be opened: make it and its folder writable",
    sqlite3.SQLITE_CORRUPT: "is damaged: delete it to start afresh",
    sqlite3.SQLITE_NOTADB: "is not a cache file of clkiln: name another one",
    sqlite3.SQLITE_IOERR: "met an input/output error: check the disk",
}


def reason(error: BaseException) -> str:
    """What happened and what to do, to be read after the file's name."""
    if isinstance(error, CacheError):
        return str(error)
    if isinstance(error, OSError):
        return f"could not be opened: {error.strerror or error}"
    detail = " ".join(str(error).split())  # SQLite quotes whole statements, line breaks included
    known = _REASONS.get(_code(error))
    if known is None and isinstance(error, UnicodeDecodeError):
        known = _REASONS[sqlite3.SQLITE_CORRUPT]
    return f"{known or 'could not be used'} ({detail})"


def fault(path: Path | None, error: BaseException) -> CacheError:
    """``error`` as the one line that a user reads."""
    return CacheError(f"the cache {path or 'in memory'} {reason(error)}")


def busy(error: BaseException) -> bool:
    """Whether the error is that another connection holds the lock."""
    return _code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def be_patient(connection: sqlite3.Connection) -> None:
    """Wait for another process's transaction as long as at first."""
    connection.execute(f"PRAGMA busy_timeout = {int(1000 * BUSY_TIMEOUT)}")


def _code(error: BaseException) -> int:
    # The low byte is the primary code; the rest tells cases apart that need the same answer.
    return (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF


def connect(path: Path, *, write: bool) -> sqlite3.Connection:
    """A connection to our file at ``path``; with ``write`` the file is made or brought up to date.

    Raises :class:`CacheError` for every fault; a foreign file or one of a newer schema is then as
    it was, byte for byte.
    """
    try:
        if sqlite3.sqlite_version_info < schema.OLDEST_SQLITE:
            raise CacheError(f"needs SQLite 3.37, Python's is {sqlite3.sqlite_version}")
        version = _inspect(path, write=write)
        if not write and 0 < version < schema.latest():
            return connect_copy(path)[0]
        return _connect(path, write=write)
    except (*FAULTS, OSError, CacheError) as error:
        raise fault(path, error) from error


def connect_copy(path: Path) -> tuple[sqlite3.Connection, int]:
    """A copy of our file in memory, brought up to date, and the schema that the file has.

    The file and what lies beside it are not touched: a journal that a killed writer left is rolled
    back in the copy alone. Raises :class:`CacheError` as :func:`connect` does.
    """
    try:
        _inspect(path, write=False)
        connection = _copy(path)
        try:
            application, version = schema.identity(connection)
            schema.check_identity(application, version)
            if version < schema.latest():
                schema.migrate(connection)
            schema.check_tables(connection)
        except BaseException:
            connection.close()
            raise
        return connection, version
    except CacheError as error:
        raise error if str(path) in str(error) else fault(path, error) from error
    except (*FAULTS, OSError) as error:
        raise fault(path, error) from error


def connect_shipped(path: Path) -> sqlite3.Connection:
    """A connection that only reads, to a file on which nothing may be written: no journal is rolled
    back either. Raises :class:`CacheError` as :func:`connect` does."""
    try:
        version = _inspect(path, write=False)
        if 0 < version < schema.latest():
            return connect_copy(path)[0]
        return _connect(path, write=False, mode="ro")
    except (*FAULTS, OSError, CacheError) as error:
        raise fault(path, error) from error


def connect_memory() -> sqlite3.Connection:
    """A connection to an empty store of the latest schema that ends with the process."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    schema.migrate(connection)
    return connection


def writable(path: Path) -> bool:
    """Whether the file can be written, and its folder, where SQLite puts the rollback journal."""
    return os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)


def _inspect(path: Path, *, write: bool) -> int:
    """See that there is a file of ours or, to write, an empty one. Raises for whatever else.

    Returns the version of its schema; 0 for a file that is empty.
    """
    if path.parts[:1] == ("~",):
        raise CacheError("has no folder, as there is no home folder: set CLKILN_CACHE_DIR")
    if not os.path.exists(path) or os.path.isfile(path):
        trust.check(path)
    if not os.path.lexists(path):
        if not write:
            raise CacheError("does not exist: run `clkiln tune` to make it")
        _create(path)
        trust.check(path)  # somebody else may have been quicker
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise CacheError("is not a file: name another one")
    if status.st_size > 0:
        return _probe(path)
    if not write:
        raise CacheError("is empty: run `clkiln tune` to fill it")
    return 0


def _create(path: Path) -> None:
    trust.make_folders(path.parent)
    # SQLite would make it readable for everybody. The file is never opened like this once it is
    # there (another process may be quicker): closing any descriptor of a file drops all POSIX
    # locks that this process has on it, those of other connections included.
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))


def _probe(path: Path) -> int:
    """Read the schema's version, without a lock and without touching a journal beside the file.

    An ordinary connection would roll back a journal that a killed writer left, which changes the
    file; this one cannot change anything, so what is not ours stays as it is.
    """
    application, version = _identity(path)
    for _ in range(LOOKS):
        if application:
            break
        # Foreign, or another process is in its first commit: that is seen before it is whole.
        time.sleep(0.01)
        application, version = _identity(path)
    # Empty by now: another process has rolled back what a killed one had begun to write.
    if os.path.getsize(path) > 0:
        schema.check_identity(application, version)
    return version


def _identity(path: Path) -> tuple[int, int]:
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)
    try:
        # Else SQLite refuses a header that counts more pages than there are. A writer killed in its
        # first commit leaves one, and the journal mends it once the file is known to be ours.
        connection.execute("PRAGMA writable_schema = ON")
        return schema.identity(connection)
    finally:
        connection.close()


def _copy(path: Path) -> sqlite3.Connection:
    """The pages of ``path`` in memory, as the next process that opens it would find them."""
    try:
        return _in_memory(path, "mode=ro")
    except sqlite3.OperationalError as error:
        # What a reader meets where a killed writer's journal waits to be rolled back.
        if _code(error) not in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN):
            raise
    with tempfile.TemporaryDirectory(prefix="clkiln-cache-") as folder:
        real = os.path.realpath(path)  # SQLite's journal lies beside it, and not beside a link
        for end in ("", "-journal", "-wal"):
            with contextlib.suppress(FileNotFoundError):
                shutil.copyfile(f"{real}{end}", Path(folder, f"copy{end}"))
        return _in_memory(Path(folder, "copy"), "mode=rw")


def _in_memory(path: Path, mode: str) -> sqlite3.Connection:
    uri = f"{path.absolute().as_uri()}?{mode}"
    memory = sqlite3.connect(":memory:", isolation_level=None)
    try:
        with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=BUSY_TIMEOUT)) as source:
            source.execute("SELECT count(*) FROM sqlite_master")
            source.backup(memory)
        _make_safe(memory)
    except BaseException:
        memory.close()
        raise
    return memory


def _make_safe(connection: sqlite3.Connection) -> None:
    for pragma in ("trusted_schema = OFF", "cell_size_check = ON", "synchronous = FULL"):
        connection.execute(f"PRAGMA {pragma}")


def _connect(path: Path, *, write: bool, mode: str = "rw") -> sqlite3.Connection:
    # Readers get mode=rw as well: after a kill, only who may write can roll the journal back.
    # query_only then keeps their statements from changing anything.
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}",
        uri=True,
        timeout=BUSY_TIMEOUT,
        isolation_level=None,
    )
    try:
        _make_safe(connection)
        if not write:
            connection.execute("PRAGMA query_only = ON")
        application, version = schema.identity(connection)
        # Zero is also what an interrupted first migration leaves, rolled back by the line above.
        if write and version < schema.latest():
            schema.migrate(connection)
        else:
            schema.check_current(application, version)
        schema.check_tables(connection)
    except BaseException:
        connection.close()
        raise
    return connection
