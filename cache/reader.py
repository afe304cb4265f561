"""What a warm start needs from a cache file: reads that cannot fail, with the standard library.

Every fault in the file is a miss and one warning. sqlite-utils is not imported here.
"""

from __future__ import annotations

import hmac
import sqlite3
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from . import codec, schema
from .connection import FAULTS, busy, reason
from .rows import BestRow, BinaryRow, DriverRow, RunRow, TrialRow

T = TypeVar("T")
Warn = Callable[[str], None]

#: Milliseconds to wait for a lock once one wait was in vain: a start does not add such waits up.
_IMPATIENT = 50


def python_warning(text: str) -> None:
    """Where warnings go if the caller names no other place."""
    warnings.warn(text, RuntimeWarning, stacklevel=2)


class Reader:
    """The reading half of :class:`~clkiln.cache.store.Store`; see there."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        path: Path | None,
        warn: Warn,
        *,
        write: bool = True,
        tolerant: bool = False,
    ) -> None:
        """``path`` is None in memory; ``tolerant`` makes writes that fail a warning, too."""
        self._connection = connection
        self._path = path
        self._warn = warn
        self._write_allowed = write
        self._tolerant = tolerant
        self._warned: set[str] = set()
        #: Keys of programs that were taken, and of those whose stamp of use is older than a day.
        self._taken: set[str] = set()
        self._unstamped: set[str] = set()

    @property
    def path(self) -> Path | None:
        """The file; None for a store in memory."""
        return self._path

    # -- what a start reads --------------------------------------------------------------------

    def best(self, workload: str, driver: str, digest: str) -> BestRow | None:
        """The chosen configuration under exactly this driver and kernel."""
        where = "WHERE workload = ? AND driver = ? AND digest = ?"
        return _first(self._rows(BestRow, where, workload, driver, digest))

    def best_of_other_driver(self, workload: str, digest: str, driver: str) -> BestRow | None:
        """The latest choice under any driver but ``driver``: a candidate to time again.

        What stands behind a ``+`` in a key, the limits under which the device was used, must be
        the same: another driver is a device of before, other limits are another device.
        """
        limits = "".join(driver.partition("+")[1:])
        where = "WHERE workload = ? AND digest = ? AND driver <> ?"
        alike = "AND substr(driver, instr(driver || '+', '+')) = ?"
        latest_first = "ORDER BY updated DESC, rowid DESC LIMIT 1"
        sql = f"{where} {alike} {latest_first}"
        return _first(self._rows(BestRow, sql, workload, digest, driver, limits))

    def get_binaries(self, keys: Iterable[str]) -> dict[str, bytes]:
        """The payloads of those ``keys`` that the file has, in one query.

        A payload whose digest over key and payload does not match is left out and dropped from the
        file; a warning counts them. That they were used is noted when the store is closed.
        """
        yesterday = codec.now(days_ago=1)
        found: dict[str, bytes] = {}
        refused: list[tuple[Any, Any, Any]] = []
        # A plan has some hundred keys: only beyond 32,766 or so is it more than one query.
        most = self._connection.getlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER)
        wanted = list(dict.fromkeys(keys))
        for chunk in (wanted[i : i + most] for i in range(0, len(wanted), most)):
            marks = ", ".join("?" * len(chunk))
            last = "max(used, created)"
            sql = f"SELECT key, sha256, payload, {last} FROM binaries WHERE key IN ({marks})"
            for key, sha256, payload, used in self._select(sql, chunk, tuple):
                if sealed(key, sha256, payload):
                    found[key] = payload
                    self._taken.add(key)
                    if not isinstance(used, str) or used < yesterday:
                        self._unstamped.add(key)
                else:
                    refused.append((key, sha256, payload))
        if refused:
            self._warn_once(
                "binaries",
                f"the cache {self._where} holds {len(refused)} damaged"
                f" {'binary' if len(refused) == 1 else 'binaries'}: not used, to be compiled again",
            )
            self._discard(refused)
        return found

    def fact(self, name: str, *, driver: str = "") -> Any | None:
        """The value last set; None if there is none."""
        return self.own_fact(name, driver=driver)

    def own_fact(self, name: str, *, driver: str = "") -> Any | None:
        """As :meth:`fact`, of this file alone."""
        sql = "SELECT value FROM facts WHERE name = ? AND driver = ?"
        return _first(self._select(sql, (name, driver), lambda v: codec.from_json(v[0])))

    def shipped_fact(self, name: str, *, driver: str = "") -> Any | None:
        """As :meth:`fact`, of a file that lies under this one; None where there is no such file."""
        return None

    def trials(
        self,
        *,
        workload: str | None = None,
        driver: str | None = None,
        digest: str | None = None,
        status: str | None = None,
    ) -> list[TrialRow]:
        """Trials in the order they were made; each argument that is given narrows them."""
        given = {"workload": workload, "driver": driver, "digest": digest, "status": status}
        chosen = {name: value for name, value in given.items() if value is not None}
        where = " AND ".join(f"{name} = ?" for name in chosen) or "TRUE"
        return self._rows(TrialRow, f"WHERE {where} ORDER BY id", *chosen.values())

    # -- what reports read -----------------------------------------------------------------------

    def drivers(self) -> list[DriverRow]:
        """Every driver that something was tuned or compiled under, first seen first."""
        return self._rows(DriverRow, "ORDER BY first_seen, rowid")

    def shipped_drivers(self) -> list[DriverRow]:
        """As :meth:`drivers`, of a file that lies under this one; none if there is no such file."""
        return []

    def best_rows(self, *, driver: str | None = None) -> list[BestRow]:
        """Every choice, by workload; of one driver if it is given."""
        where, args = _of_driver(driver)
        return self._rows(BestRow, f"{where} ORDER BY workload, updated, rowid", *args)

    def runs(self) -> list[RunRow]:
        """Every run of the tuner, oldest first."""
        return self._rows(RunRow, "ORDER BY id")

    def binaries(self) -> list[BinaryRow]:
        """Every binary without its bytes, by label."""
        return self._rows(BinaryRow, "ORDER BY label, key")

    def facts(self, driver: str | None = None) -> dict[tuple[str, str], Any]:
        """``(name, driver)`` to value; of one driver if it is given ("" for those of none)."""
        where, args = _of_driver(driver)
        sql = f"SELECT name, driver, value FROM facts {where} ORDER BY name, driver"
        rows = self._select(sql, args, lambda v: ((str(v[0]), str(v[1])), codec.from_json(v[2])))
        return dict(rows)

    def info(self) -> dict[str, Any]:
        """What `clkiln cache info` shows, ready for JSON.

        ``path`` (None in memory), ``persistent``, ``size`` of the file in bytes, ``schema``,
        ``rows`` (table to count), ``binary_bytes``, ``drivers`` (driver, first_seen, info).
        """
        size = self._path.stat().st_size if self._path and self._path.exists() else 0
        return {
            "path": str(self._path) if self._path else None,
            "persistent": self.persistent,
            "size": size,
            "schema": self._number("PRAGMA user_version"),
            "rows": {t: self._number(f"SELECT count(*) FROM {t}") for t in schema.TABLES},
            "binary_bytes": int(self._number("SELECT total(size) FROM binaries")),
            "drivers": [
                {"driver": d.driver, "first_seen": d.first_seen, "info": d.info}
                for d in self.drivers()
            ],
        }

    @property
    def bytes(self) -> int:
        """The size of the file or, in memory, that it would have."""
        return int(self._number("PRAGMA page_size") * self._number("PRAGMA page_count"))

    @property
    def persistent(self) -> bool:
        """Whether what is written outlives this process."""
        return self._path is not None and self._write_allowed

    # -- how ---------------------------------------------------------------------------------------

    def _rows(self, kind: type[codec.R], tail: str, *args: Any) -> list[codec.R]:
        sql = f"SELECT {codec.columns(kind)} FROM {codec.TABLE_OF[kind]} {tail}"
        return self._select(sql, args, lambda values: codec.decode(kind, values))

    def _number(self, sql: str) -> Any:
        return _first(self._select(sql, (), lambda values: values[0])) or 0

    def _select(
        self, sql: str, args: Sequence[Any], decode: Callable[[Sequence[Any]], T]
    ) -> list[T]:
        """The rows up to a fault; a row that makes no sense is left out."""
        found: list[T] = []
        try:
            for values in self._connection.execute(sql, args):
                try:
                    found.append(decode(values))
                except ValueError as error:
                    self._read_fault(f"is damaged: delete it to start afresh ({error})")
        except sqlite3.ProgrammingError:
            raise  # a closed store or a second thread: our caller's mistake, not the file's
        except FAULTS as error:
            self._read_fault(reason(error))
            self._lose_patience(error)
        return found

    def _read_fault(self, what: str) -> None:
        text = f"the cache {self._where} {what}; what it does not give is worked out anew"
        self._warn_once("read", text)

    def _lose_patience(self, error: BaseException) -> None:
        """After a wait in vain, wait no more, unless a write that must not be lost may follow."""
        if busy(error) and (self._tolerant or not self._write_allowed):
            self._connection.execute(f"PRAGMA busy_timeout = {_IMPATIENT}")

    def _warn_once(self, kind: str, text: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            self._warn(text)

    @property
    def _where(self) -> str:
        return str(self._path or "in memory")

    def _discard(self, binaries: list[tuple[Any, Any, Any]]) -> None:
        """Drop damaged rows of ``(key, sha256, payload)``; a reader cannot."""


def _of_driver(driver: str | None) -> tuple[str, tuple[str, ...]]:
    return ("", ()) if driver is None else ("WHERE driver = ?", (driver,))


def _first(rows: list[T]) -> T | None:
    return rows[0] if rows else None


def sealed(key: Any, sha256: Any, payload: Any) -> bool:
    """Whether a binary's digest fits its key and payload; False for values of any other type."""
    return (
        isinstance(key, str)
        and isinstance(sha256, str)
        and isinstance(payload, bytes)
        and sha256.isascii()  # compare_digest takes no other text
        and hmac.compare_digest(sha256, codec.seal(key, payload))
    )
