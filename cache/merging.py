"""Reading what a file has learnt, and merging more into it, within one transaction each."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any

from . import codec
from .learnt import Combine, FactRow, Learnt, ProgramRow, best_key, merge, trial_order
from .reader import sealed
from .rows import BestRow, DriverRow, TrialRow

_FACTS = "SELECT name, driver, value, updated FROM facts"
_PROGRAMS = "SELECT key, label, driver, created, sha256, payload FROM binaries"


def read_learnt(connection: sqlite3.Connection, *, programs: bool) -> Learnt:
    """All of a file but its runs; rows that make no sense are left out.

    Raises ``sqlite3.Error`` where pages are lost: what is merged must be whole.
    """
    return merge([
        Learnt(
            drivers=tuple(_rows(connection, DriverRow)),
            best=tuple(_rows(connection, BestRow)),
            trials=tuple(_rows(connection, TrialRow)),
            facts=tuple(_facts(connection)),
            programs=tuple(_programs(connection)) if programs else (),
        )
    ])  # fmt: skip


def merge_into(connection: sqlite3.Connection, more: Learnt, combine: Combine) -> dict[str, int]:
    """Merge ``more`` into the file; to be called within a transaction.

    Returns how many rows are new or changed, by table. The order in which several are merged does
    not matter, down to the ids of trials. What ``combine`` raises goes through.
    """
    # Rows that have no use for each other are merged with those of the same keys alone.
    mine = read_learnt(connection, programs=bool(more.programs))
    touched = {(row.name, row.driver) for row in more.facts}
    kept = tuple(row for row in mine.facts if (row.name, row.driver) in touched)
    there = Learnt(mine.drivers, mine.best, (), kept, mine.programs)
    whole = merge([there, Learnt(more.drivers, more.best, (), more.facts, more.programs)], combine)
    return {
        "drivers": _put_in_order(connection, "drivers", whole.drivers, there.drivers),
        "best": _put_in_order(connection, "best", whole.best, there.best),
        "facts": _put(connection, "facts", _new(whole.facts, there.facts)),
        "programs": _put(connection, "binaries", _new(whole.programs, there.programs)),
        "trials": _merge_trials(connection, more.trials),
    }


def _merge_trials(connection: sqlite3.Connection, more: Iterable[TrialRow]) -> int:
    """Unite; trials lie in the order of their times, those of a run as it made them."""
    before = _rows(connection, TrialRow)
    known = {trial_order(row) for row in before}
    # What comes may hold the same trial twice, too.
    new = [row for key, row in {trial_order(r): r for r in more}.items() if key not in known]
    if not new:
        return 0

    def order(row: TrialRow) -> tuple[Any, ...]:
        stamp, content = trial_order(row)
        return (stamp, 0, row.id, "") if row.run is not None else (stamp, 1, 0, content)

    whole = sorted([*before, *new], key=order)
    if whole[: len(before)] != before:
        connection.executemany("DELETE FROM trials WHERE id = ?", [(row.id,) for row in before])
    else:
        whole = whole[len(before) :]
    _put(connection, "trials", whole)
    return len(new)


def _put_in_order(
    connection: sqlite3.Connection,
    table: str,
    rows: Sequence[DriverRow | BestRow],
    before: Iterable[Any],
) -> int:
    """As :func:`_put`, but all rows anew: their place in the table decides ties of time."""
    new = _new(rows, before)
    if new:
        stamps = [row.first_seen if isinstance(row, DriverRow) else row.updated for row in rows]
        whole = [row for _, row in sorted(zip(stamps, rows, strict=True), key=lambda pair: pair[0])]
        keys = [best_key(row) if isinstance(row, BestRow) else (row.driver,) for row in whole]
        where = "workload = ? AND driver = ? AND digest = ?" if table == "best" else "driver = ?"
        connection.executemany(f"DELETE FROM {table} WHERE {where}", keys)
        _put(connection, table, whole)
    return len(new)


def _put(connection: sqlite3.Connection, table: str, rows: Iterable[Any]) -> int:
    records = [_record(row) for row in rows]
    if records:
        names = ", ".join(records[0])
        marks = ", ".join(f":{name}" for name in records[0])
        sql = f"INSERT OR REPLACE INTO {table} ({names}) VALUES ({marks})"
        connection.executemany(sql, records)
    return len(records)


def _record(row: Any) -> dict[str, Any]:
    record = codec.encode(row)
    if isinstance(row, FactRow):
        record["value"] = codec.to_json(row.value)
    if isinstance(row, ProgramRow):
        record |= {"size": len(row.payload), "used": ""}
    return record


def _new(rows: Iterable[Any], before: Iterable[Any]) -> list[Any]:
    known = {codec.to_json(_comparable(row)) for row in before}
    return [row for row in rows if codec.to_json(_comparable(row)) not in known]


def _comparable(row: Any) -> dict[str, Any]:
    return {k: v.hex() if isinstance(v, bytes) else v for k, v in _record(row).items()}


def _rows(connection: sqlite3.Connection, kind: type[codec.R]) -> list[codec.R]:
    sql = f"SELECT {codec.columns(kind)} FROM {codec.TABLE_OF[kind]} ORDER BY rowid"
    found = []
    for values in connection.execute(sql):
        try:
            found.append(codec.decode(kind, values))
        except ValueError:
            continue  # no use to anybody, and clkiln cache verify counts it
    return found


def _facts(connection: sqlite3.Connection) -> Iterable[FactRow]:
    for name, driver, text, updated in connection.execute(_FACTS):
        try:
            yield codec.decode(FactRow, (name, driver, codec.from_json(text), updated))
        except ValueError:
            continue


def _programs(connection: sqlite3.Connection) -> Iterable[ProgramRow]:
    for values in connection.execute(_PROGRAMS):
        try:
            row = codec.decode(ProgramRow, values)
        except ValueError:
            continue
        if sealed(row.key, row.sha256, row.payload):
            yield row
