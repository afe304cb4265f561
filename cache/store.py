"""The store: one SQLite file with what was learnt about one device.

Reads (``reader.py``) use the standard library alone; writes go through sqlite-utils over the same
connection, each in a transaction of its own. When a method that writes has returned, its row
survives the death of the process.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from ..errors import CacheError
from ..units import parse_bytes, readable
from . import codec, schema
from .connection import (
    FAULTS,
    be_patient,
    connect,
    connect_copy,
    connect_memory,
    fault,
    writable,
)
from .prune import make_room, prune
from .reader import Reader, Warn, python_warning
from .rows import BestRow, BinaryRow, DriverRow, RunRow, TrialRow
from .transaction import immediate

if TYPE_CHECKING:
    from sqlite_utils import Database

    from .learnt import Combine, Learnt

T = TypeVar("T")

_FACT = "SELECT value FROM facts WHERE name = ? AND driver = ?"
#: Bytes that a file may have unless ``CLKILN_CACHE_LIMIT`` says otherwise.
SIZE_LIMIT = 512 << 20


def size_limit(warn: Callable[[str, str], None]) -> int:
    """Bytes that a file may have for compiled programs to be put in; parameters always are.

    ``CLKILN_CACHE_LIMIT``, such as ``64M``; where it is no size ``warn`` is told so.
    """
    text = os.environ.get("CLKILN_CACHE_LIMIT", "").strip()
    limit = parse_bytes(text) if text else SIZE_LIMIT
    if limit is None:
        warn("size", f"CLKILN_CACHE_LIMIT: {text!r} is no size, {readable(SIZE_LIMIT)} it is")
    return limit or SIZE_LIMIT


class Store(Reader):
    """A cache file, open; a context manager that closes it.

    Reads never raise for what is wrong with the file: a fault is a miss and one warning. Writes
    raise :class:`CacheError` (disk full, locked, not writable), except in a store that
    :meth:`open_or_memory` gave: there they warn once and do nothing, and ids are then 0.

    One thread uses a store, and no process that was forked from it.
    """

    _database: Database | None = None

    @classmethod
    def open(cls, path: Path, *, write: bool = True, warn: Warn = python_warning) -> Self:
        """Open the file; to write, make folder (0700) and file (0600) where they are missing.

        To read, a file of an older schema is copied and brought up to date in memory. ``warn``
        gets the warnings about unreadable content. Raises :class:`CacheError` if there is no file
        to read, or if it is foreign, of a newer schema, damaged, locked or not writable.
        """
        return cls(connect(path, write=write), path, warn, write=write)

    @classmethod
    def open_copy(cls, path: Path, *, warn: Warn = python_warning) -> Self:
        """A copy of the file in memory, to try what a write would do. Raises as :meth:`open`."""
        return cls(connect_copy(path)[0], None, warn)

    @classmethod
    def open_or_memory(cls, path: Path, warn: Warn) -> Self:
        """Open the file to write, or else to read, or else go on in memory; no fault raises.

        One call of ``warn`` tells what is lost by that.
        """
        try:
            if not path.exists() or writable(path):
                return cls(connect(path, write=True), path, warn, tolerant=True)
            store = cls(connect(path, write=False), path, warn, write=False, tolerant=True)
            warn(f"the cache {path} cannot be written: it is read, and nothing new is kept")
            return store
        except (CacheError, OSError) as error:
            text = error if isinstance(error, CacheError) else fault(path, error)
            warn(f"{text}; going on without it, nothing is kept")
            return cls(connect_memory(), None, warn, tolerant=True)

    @property
    def keeps(self) -> bool:
        """Whether what is put in is there for the next process."""
        return self._write_allowed and self._path is not None

    def close(self) -> None:
        """Note which programs were used, close the file; the store is of no use afterwards."""
        try:
            self._note_use()
        finally:
            self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # -- what is learnt ------------------------------------------------------------------------

    def put_driver(self, row: DriverRow) -> None:
        """Keep a driver's description. ``first_seen`` is set once; what is known is not written."""
        record = codec.encode(row, first_seen=codec.now())
        sql = "SELECT info FROM drivers WHERE driver = ?"
        if self._select(sql, (record["driver"],), tuple) == [(record["info"],)]:
            return

        def put(database: Database) -> None:
            table = database.table("drivers")
            if table.count_where("driver = ?", [record["driver"]]):
                table.update(record["driver"], {"info": record["info"]})
            else:
                table.insert(record)

        self._write(put, None)

    def add_trial(self, row: TrialRow) -> int:
        """Keep a trial, failed or not; returns its id. Sets ``created``."""
        return self._insert("trials", codec.encode(row, created=codec.now()))

    def set_best(self, row: BestRow) -> None:
        """Choose a configuration in place of the one before. Sets ``updated``."""
        self._replace("best", codec.encode(row, updated=codec.now()))

    def start_run(self, row: RunRow) -> int:
        """Keep that a run of the tuner began; returns its id. Sets ``started``."""
        return self._insert("runs", codec.encode(row, started=codec.now(), ended=None))

    def finish_run(self, run: int, seconds: float, result: dict[str, Any]) -> None:
        """Keep how a run ended. A run that was cleared meanwhile stays cleared. Sets ``ended``."""
        values = (codec.now(), seconds, codec.to_json(result), run)
        sql = "UPDATE runs SET ended = ?, seconds = ?, result = ? WHERE id = ?"
        self._write(lambda database: database.execute(sql, values), None)

    def put_binary(self, key: str, payload: bytes, *, label: str, driver: str) -> None:
        """Keep a compiled program under ``key``, with a digest over key and payload.

        The file stays within :func:`size_limit`: the least recently used programs make room, those
        that this store has handed out last. Where that is not enough it warns and keeps nothing.
        """
        record = {
            "key": key,
            "label": label,
            "size": len(payload),
            "driver": driver,
            "created": codec.now(),
            "used": "",
            "sha256": codec.seal(key, payload),
            "payload": payload,
        }
        limit = size_limit(self._warn_once)

        def put(database: Database) -> bool:
            if not make_room(self._connection, len(payload), limit, self._taken):
                return False
            database.table("binaries").insert(record, replace=True)
            return True

        if self._write(put, True):
            self._keep_within(limit)
        else:
            what = "has no room for compiled programs: they are not kept"
            todo = "make it smaller with clkiln cache clear, or raise CLKILN_CACHE_LIMIT"
            self._warn_once("limit", f"the cache {self._where} {what}; {todo}")

    def drop_binaries(self, keys: Iterable[str]) -> None:
        """Delete programs that nothing needs any more; unknown keys are fine."""

        def drop(database: Database) -> None:
            for key in wanted:
                database.execute("DELETE FROM binaries WHERE key = ?", (key,))

        wanted = sorted(keys)
        if wanted:
            self._write(drop, None)

    def set_fact(self, name: str, value: Any, *, driver: str = "") -> None:
        """Keep a small value that JSON can hold. Raises ``TypeError`` for any other."""
        text = codec.to_json(value)
        record = {"name": name, "driver": driver, "value": text, "updated": codec.now()}
        self._replace("facts", record)

    def update_fact(
        self, name: str, change: Callable[[Any | None], Any], *, driver: str = ""
    ) -> Any:
        """Put what ``change`` makes of a fact's value (None: there is none) in its place.

        One transaction, so that of two processes neither undoes what the other did; what ``change``
        raises goes through, and all is as before. Returns the new value. Raises
        :class:`CacheError` for every fault, in any store: a value that could not be read must not
        be replaced, and what was not kept must not be taken for kept.
        """

        def update(database: Database) -> Any:
            row = self._connection.execute(_FACT, (name, driver)).fetchone()
            before = None
            try:
                before = row and codec.from_json(row[0])
            except ValueError as error:  # lost already
                self._read_fault(f"is damaged: the fact {name} is replaced ({error})")
            after = change(before)
            text = codec.to_json(after)
            if row is None or row[0] != text:
                record = {"name": name, "driver": driver, "value": text, "updated": codec.now()}
                database.table("facts").insert(record, replace=True)
            return after

        return self._write(update, None, must=True)

    def clear(self, *, binaries_only: bool) -> int:
        """Delete all rows, or the binaries alone, and free their space; returns their number."""
        tables = ("binaries",) if binaries_only else schema.TABLES

        def empty(database: Database) -> int:
            return sum(database.execute(f"DELETE FROM {table}").rowcount for table in tables)

        removed = self._write(empty, 0)
        if removed:
            self._shrink()
        return removed

    def prune(
        self,
        obsolete: Collection[str] = (),
        *,
        max_size: int | None = None,
        unused_since: str | None = None,
    ) -> list[BinaryRow]:
        """Delete programs, and no parameters, in one transaction; returns the deleted ones' rows.

        First those with keys in ``obsolete`` and damaged ones, then those last used before the
        stamp ``unused_since``, then the least recently used until the file has at most
        ``max_size`` bytes, or no program any more. The file shrinks, unless another process holds
        it.
        """

        def delete(database: Database) -> list[BinaryRow]:
            return prune(self._connection, obsolete, max_size, unused_since)

        pruned = self._write(delete, list[BinaryRow]())
        self._shrink()
        return pruned

    # -- what moves between files ----------------------------------------------------------------

    def learnt(self, *, programs: bool = False) -> Learnt:
        """All rows but runs, without programs unless they are wanted; raises :class:`CacheError`
        where pages are lost."""
        from .merging import read_learnt

        try:
            return read_learnt(self._connection, programs=programs)
        except FAULTS as error:
            raise fault(self._path, error) from error

    def merge(self, more: Learnt, combine: Combine | None = None) -> dict[str, int]:
        """Take what another file has learnt: all in one transaction or, if anything raises, none.

        Merging several in any order, or one twice, gives the same rows. ``combine`` is asked for
        each fact of ``more``; without it the latest counts. Returns how many rows are new or
        changed, by table.
        """
        from .learnt import last_value
        from .merging import merge_into

        combine, limit = combine or last_value, size_limit(self._warn_once)

        def take(_: Database) -> dict[str, int]:
            counts = merge_into(self._connection, more, combine)
            make_room(self._connection, 0, limit)
            return counts

        counts = self._write(take, dict[str, int]())
        self._keep_within(limit)
        return counts

    # -- how ---------------------------------------------------------------------------------------

    def _shrink(self) -> None:
        """Give free pages back. Rows are gone by now: a file that stays large is no failure."""
        with contextlib.suppress(*FAULTS):
            if self._connection.execute("PRAGMA freelist_count").fetchone() != (0,):
                self._connection.execute("VACUUM")

    def _keep_within(self, limit: int) -> None:
        """Free pages count, too, once a limit was lowered or trials have taken what was free."""
        if self._path is not None and self.bytes > limit:
            self._shrink()

    def _note_use(self) -> None:
        """Stamp the programs that were taken; to the day, so that a start seldom writes."""
        if not self._unstamped or not self.keeps:
            return
        rows = [(codec.now(), key) for key in sorted(self._unstamped)]
        # Only a hint for what to prune: nobody waits for it, and nothing fails without it.
        with contextlib.suppress(*FAULTS):
            self._connection.execute("PRAGMA busy_timeout = 0")
            self._leave_wal()
            with immediate(self._connection):
                self._connection.executemany("UPDATE binaries SET used = ? WHERE key = ?", rows)

    def _insert(self, table: str, record: dict[str, Any]) -> int:
        def insert(database: Database) -> int:
            key = database.table(table).insert(record, pk="id").last_pk
            assert isinstance(key, int)  # both tables have an INTEGER PRIMARY KEY
            return key

        return self._write(insert, 0)

    def _replace(self, table: str, record: dict[str, Any]) -> None:
        self._write(lambda database: database.table(table).insert(record, replace=True), None)

    def _discard(self, binaries: list[tuple[Any, Any, Any]]) -> None:
        if not self._write_allowed:
            return
        # Not by key alone: another process may have put a sound binary there meanwhile.
        sql = "DELETE FROM binaries WHERE key IS ? AND sha256 IS ? AND payload IS ?"

        def drop(database: Database) -> None:
            for binary in binaries:
                database.execute(sql, binary)

        # The read that found them must not fail for it; they are checked again at the next one.
        with contextlib.suppress(CacheError):
            self._write(drop, None)

    def _write(self, action: Callable[[Database], T], lost: T, *, must: bool = False) -> T:
        """Do ``action`` in a transaction; ``lost`` is the answer where that fails and may.

        It may in a tolerant store, unless it ``must`` not.
        """
        may_fail = self._tolerant and not must
        if not self._write_allowed:
            if may_fail:
                return lost
            raise CacheError(f"the cache {self._where} is open for reading only")
        try:
            if must:
                be_patient(self._connection)  # a read may have waited in vain before
            database = self._wrapped()
            with immediate(self._connection):
                return action(database)
        except sqlite3.ProgrammingError:
            raise  # a closed store or a second thread: our caller's mistake, not the file's
        except FAULTS as error:
            if not may_fail:
                raise fault(self._path, error) from error
            self._warn_once("write", f"{fault(self._path, error)}; going on, this is not kept")
            self._lose_patience(error)
            return lost

    def _leave_wal(self) -> None:
        """Somebody may have turned WAL on, which the SQLite in use may have a bug in."""
        self._connection.execute("PRAGMA journal_mode = DELETE")

    def _wrapped(self) -> Database:
        if self._database is None:
            from sqlite_utils import Database  # slow to import, and a warm start only reads

            self._leave_wal()
            self._database = Database(self._connection, execute_plugins=False)
        return self._database
