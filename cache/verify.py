"""What is damaged in a cache file, looked for in all of it and without touching it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import codec
from .connection import FAULTS, connect_copy, reason
from .reader import sealed
from .rows import BestRow, BinaryRow, DriverRow, RunRow, TrialRow


@dataclass
class Contents:
    """What a file holds and what of it is damaged.

    ``schema`` is the file's version. ``structure`` is what SQLite says against its pages, empty if
    nothing. ``unreadable`` counts, by table, rows that make no sense. ``damaged`` are the
    binaries whose digest does not fit their key and payload; ``binaries`` are the sound ones.
    """

    path: Path
    size: int
    schema: int
    structure: list[str] = field(default_factory=list)
    unreadable: dict[str, int] = field(default_factory=dict)
    drivers: list[DriverRow] = field(default_factory=list)
    runs: list[RunRow] = field(default_factory=list)
    trials: list[TrialRow] = field(default_factory=list)
    best: list[BestRow] = field(default_factory=list)
    binaries: list[BinaryRow] = field(default_factory=list)
    damaged: list[BinaryRow] = field(default_factory=list)
    facts: int = 0


def verify(path: Path) -> Contents:
    """Read all of the file at ``path``, in a copy in memory.

    Raises :class:`~clkiln.errors.CacheError` if it is missing, foreign, of a newer schema, or so
    damaged that nothing can be read.
    """
    connection, version = connect_copy(path)
    with closing(connection):
        found = Contents(path, path.stat().st_size, version)
        reader = _Reader(connection, found)
        reader.structure()
        reader.rows(DriverRow, found.drivers)
        reader.rows(RunRow, found.runs)
        reader.rows(TrialRow, found.trials)
        reader.rows(BestRow, found.best)
        reader.binaries()
        found.facts = sum(1 for _ in reader.decoded("facts", "value", lambda v: _fact(v[0])))
    return found


def _fact(text: Any) -> bool:
    codec.from_json(text)
    return True


class _Reader:
    def __init__(self, connection: sqlite3.Connection, found: Contents) -> None:
        self.connection, self.found = connection, found

    def structure(self) -> None:
        """SQLite's own check of all pages, and of what STRICT tables may hold."""
        try:
            answers = [row[0] for row in self.connection.execute("PRAGMA quick_check")]
        except FAULTS as error:
            answers = [reason(error)]
        if answers != ["ok"]:
            self.found.structure += [" ".join(str(answer).split()) for answer in answers]

    def rows(self, kind: type[codec.R], into: list[codec.R]) -> None:
        columns = codec.columns(kind)
        table = codec.TABLE_OF[kind]
        into.extend(self.decoded(table, columns, lambda values: codec.decode(kind, values)))

    def binaries(self) -> None:
        columns = f"sha256, payload, {codec.columns(BinaryRow)}"
        for sha256, payload, row in self.decoded("binaries", columns, _binary):
            sound = sealed(row.key, sha256, payload) and row.size == len(payload)
            (self.found.binaries if sound else self.found.damaged).append(row)

    def decoded(
        self, table: str, columns: str, decode: Callable[[tuple[Any, ...]], Any]
    ) -> Iterator[Any]:
        """The rows of a table as ``decode`` makes them; others, and lost pages, are counted."""
        try:
            for values in self.connection.execute(f"SELECT {columns} FROM {table}"):
                try:
                    yield decode(values)
                except ValueError:
                    self.found.unreadable[table] = self.found.unreadable.get(table, 0) + 1
        except FAULTS as error:
            self.found.structure.append(f"table {table} {reason(error)}")


def _binary(values: tuple[Any, ...]) -> tuple[Any, Any, BinaryRow]:
    sha256, payload, *rest = values
    return sha256, payload, codec.decode(BinaryRow, rest)
