"""A transaction that takes the write lock before it reads."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def immediate(connection: sqlite3.Connection) -> Iterator[None]:
    """``BEGIN IMMEDIATE``, then ``COMMIT``; ``ROLLBACK`` for every exception, Ctrl-C included.

    What is read inside stays true until it ends. A plain BEGIN would read first and lock later,
    and could then fail at once because another process did the same.
    """
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        # SQLite has already rolled back after some errors, such as a full disk.
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
