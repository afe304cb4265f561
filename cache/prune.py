"""Deleting programs that are not needed, until a file has the size it may have."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection

from . import codec
from .reader import sealed
from .rows import BinaryRow

#: Least recently used first; what was never taken counts from when it was put in.
_OLDEST_FIRST = "SELECT rowid FROM binaries ORDER BY max(used, created), rowid"
_ONE = f"SELECT sha256, payload, {codec.columns(BinaryRow)} FROM binaries WHERE rowid = ?"
#: Stands for a row that makes no sense.
_DAMAGED = BinaryRow(key="", label="(damaged)", size=0, driver="", created="")


def prune(
    connection: sqlite3.Connection,
    obsolete: Collection[str],
    max_size: int | None,
    unused_since: str | None,
) -> list[BinaryRow]:
    """See :meth:`~clkiln.cache.store.Store.prune`; to be called within a transaction."""
    gone: list[BinaryRow] = []
    kept: list[tuple[int, BinaryRow]] = []
    for (rowid,) in connection.execute(_OLDEST_FIRST).fetchall():
        row, sound = _read(connection, rowid)
        unused = unused_since is not None and max(row.used, row.created) < unused_since
        if row.key in obsolete or unused or not sound:
            gone.append(_delete(connection, rowid, row))
        else:
            kept.append((rowid, row))
    for rowid, row in kept:
        if max_size is None or _live_bytes(connection) <= max_size:
            break
        gone.append(_delete(connection, rowid, row))
    return gone


def make_room(
    connection: sqlite3.Connection, size: int, limit: int, spared: Collection[str] = ()
) -> bool:
    """Delete the least recently used programs until one more of ``size`` bytes fits into ``limit``;
    those with keys in ``spared`` last. False, and nothing deleted, where even that is not enough.
    To be called within a transaction; it costs two look-ups in the header while there is room.
    """
    (page,) = connection.execute("PRAGMA page_size").fetchone()
    # A payload fills pages of its own but for four bytes each; its row and the index, a few more.
    need = (size // (page - 4) + 4) * page if size else 0
    if _live_bytes(connection) + need <= limit:
        return True
    (programs,) = connection.execute("SELECT total(length(payload)) FROM binaries").fetchone()
    if _live_bytes(connection) - programs + need > limit:
        return False
    order = "SELECT rowid, key FROM binaries ORDER BY max(used, created), rowid"
    rows = connection.execute(order).fetchall()
    for rowid, _ in sorted(rows, key=lambda row: row[1] in spared):
        connection.execute("DELETE FROM binaries WHERE rowid = ?", (rowid,))
        if _live_bytes(connection) + need <= limit:
            return True
    return False


def _read(connection: sqlite3.Connection, rowid: int) -> tuple[BinaryRow, bool]:
    """A program's row, and whether its digest fits it."""
    try:
        sha256, payload, *values = connection.execute(_ONE, (rowid,)).fetchone()
        row = codec.decode(BinaryRow, values)
    except (ValueError, sqlite3.OperationalError):
        # A text that is no UTF-8 is an OperationalError; lost pages are not, and end it all.
        return _DAMAGED, False
    return row, sealed(row.key, sha256, payload)


def _delete(connection: sqlite3.Connection, rowid: int, row: BinaryRow) -> BinaryRow:
    connection.execute("DELETE FROM binaries WHERE rowid = ?", (rowid,))
    return row


def _live_bytes(connection: sqlite3.Connection) -> int:
    """What the file has at least, once its free pages are given back."""
    page, pages, free = (
        connection.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("page_size", "page_count", "freelist_count")
    )
    return int(page * (pages - free))
