"""The tables, how old files get to them, and which files are left alone."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest

import clk_cache as kit
from clkiln.cache import codec, schema
from clkiln.cache.connection import connect, connect_memory
from clkiln.cache.store import Store
from clkiln.errors import CacheError

_UNKNOWN = f"has schema {schema.latest() + 1}"


def test_columns_are_the_fields_of_the_rows() -> None:
    connection = connect_memory()
    for kind, table in codec.TABLE_OF.items():
        found = {name for (_, name, *_) in connection.execute(f"PRAGMA table_info({table})")}
        hidden = {"sha256", "payload"} if table == "binaries" else set()
        assert found == {f.name for f in fields(kind)} | hidden


def test_every_table_is_strict_and_known() -> None:
    rows = connect_memory().execute("PRAGMA table_list").fetchall()
    tables = {row[1]: row[5] for row in rows if row[2] == "table" and row[1] != "sqlite_schema"}
    tables.pop("sqlite_temp_schema", None)
    assert tables == dict.fromkeys(schema.TABLES, 1)


def test_a_connection_is_made_safe(tmp_path: Path) -> None:
    with Store.open(tmp_path / "x.sqlite") as store:
        store.set_fact("a", 1)
        expected = {
            "journal_mode": "delete",
            "synchronous": 2,
            "trusted_schema": 0,
            "cell_size_check": 1,
            "busy_timeout": 5000,
            "application_id": schema.APPLICATION_ID,
            "user_version": schema.latest(),
        }
        for pragma, value in expected.items():
            assert store._connection.execute(f"PRAGMA {pragma}").fetchone() == (value,), pragma


def test_a_file_in_wal_mode_goes_back_to_a_rollback_journal(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    kit.fill(path)
    with sqlite3.connect(path) as other:
        assert other.execute("PRAGMA journal_mode = WAL").fetchone() == ("wal",)
    other.close()
    with Store.open(path) as store:
        store.set_fact("a", 1)
        assert store._connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)
        assert store.get_binaries(kit.BINARIES) == kit.BINARIES


def test_the_views_tell_what_they_say() -> None:
    with kit.memory_store() as store:
        for status in ("ok", "ok", "crash"):
            store.add_trial(kit.some_trial(status=status, compile_time=0.5))
        store.set_best(kit.some_best(driver="old", config="old"))
        store.set_best(kit.some_best(config="new", time=1.0, default_time=3.0))
        sql = "SELECT workload, config, speedup, trials FROM best_per_workload"
        assert store._connection.execute(sql).fetchall() == [("gemv|k=1", "new", 3.0, 3)]
        sql = "SELECT status, trials, workloads, compile_seconds FROM trials_by_status"
        assert store._connection.execute(sql).fetchall() == [
            ("ok", 2, 1, 1.0),
            ("crash", 1, 1, 0.5),
        ]


def test_an_older_file_is_brought_up_to_date(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.sqlite"
    kit.fill(path)
    latest = schema.latest()
    step = ("CREATE TABLE later (x INTEGER) STRICT", "INSERT INTO later VALUES (1)")
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, step))
    before = path.read_bytes()
    with Store.open(path, write=False) as store:
        assert store._connection.execute("SELECT * FROM later").fetchall() == [(1,)]
        assert store.get_binaries(kit.BINARIES) == kit.BINARIES
    assert path.read_bytes() == before, "read as it is, brought up to date in memory alone"
    for _ in range(2):
        with Store.open(path) as store:
            assert store.info()["schema"] == latest + 1
            assert store._connection.execute("SELECT * FROM later").fetchall() == [(1,)]
            assert store.get_binaries(kit.BINARIES) == kit.BINARIES


def test_a_migration_that_fails_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.sqlite"
    kit.fill(path)
    before = path.read_bytes()
    step = ("CREATE TABLE later (x INTEGER) STRICT", "CREATE TABLE best (x INTEGER) STRICT")
    with monkeypatch.context() as patch:
        patch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, step))
        with pytest.raises(CacheError, match="already exists"):
            Store.open(path)
    assert path.read_bytes() == before
    with Store.open(path) as store:
        assert store.get_binaries(kit.BINARIES) == kit.BINARIES


def _text(path: Path) -> None:
    path.write_text("workload,config,time\n" * 500)


def _noise(path: Path) -> None:
    path.write_bytes(bytes(i * i % 256 for i in range(20_000)))


def _database(path: Path, *pragmas: str) -> None:
    connection = sqlite3.connect(path)
    for pragma in pragmas:
        connection.execute(f"PRAGMA {pragma}")
    connection.execute("CREATE TABLE best (workload TEXT, config TEXT)")
    connection.execute("INSERT INTO best VALUES ('theirs', 'theirs')")
    connection.commit()
    connection.close()


def _other_application(path: Path) -> None:
    _database(path, "application_id = 1196444487", "user_version = 1")


def _wal(path: Path) -> None:
    _database(path, "journal_mode = WAL")


def _without_tables(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 3")
    connection.close()


def _interrupted(path: Path) -> None:
    """A database whose writer was killed: a journal lies beside it that an open would roll back."""
    _database(path.with_suffix(".work"))
    _leave_journal(path.with_suffix(".work"), path)


def _newer(path: Path) -> None:
    kit.fill(path)
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version = {schema.latest() + 1}")
    connection.close()


def _newer_interrupted(path: Path) -> None:
    _newer(path.with_suffix(".work"))
    _leave_journal(path.with_suffix(".work"), path)


def _leave_journal(work: Path, path: Path) -> None:
    connection = sqlite3.connect(work, isolation_level=None)
    connection.execute("PRAGMA cache_size = 1")
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("CREATE TABLE spilled (x BLOB)")
    connection.execute("INSERT INTO spilled VALUES (randomblob(100000))")
    shutil.copy(work, path)
    shutil.copy(f"{work}-journal", f"{path}-journal")
    connection.execute("ROLLBACK")
    connection.close()


FOREIGN = [_text, _noise, _database, _other_application, _wal, _without_tables, _interrupted]


def _bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("make", [*FOREIGN, _newer, _newer_interrupted])
def test_what_is_not_ours_stays_byte_for_byte(tmp_path: Path, make: Callable[[Path], None]) -> None:
    path = tmp_path / "x.sqlite"
    make(path)
    before = _bytes(tmp_path)
    expected = _UNKNOWN if make in (_newer, _newer_interrupted) else "is not a cache file"
    for write in (True, False):
        with pytest.raises(CacheError, match=expected) as caught:
            Store.open(path, write=write)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    warnings = kit.Warnings()
    with Store.open_or_memory(path, warnings.append) as store:
        assert not store.persistent and store.path is None
        assert store.best("theirs", "driver", "digest") is None
        store.set_fact("a", 1)
        assert store.fact("a") == 1
    assert len(warnings) == 1 and expected in warnings[0]
    assert _bytes(tmp_path) == before


def test_an_unknown_schema_under_the_lock_is_left_alone() -> None:
    connection = connect_memory()
    connection.execute(f"PRAGMA user_version = {schema.latest() + 1}")
    with pytest.raises(CacheError, match=_UNKNOWN):
        schema.migrate(connection)
    assert not connection.in_transaction


def test_an_old_sqlite_means_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 36, 0))
    with pytest.raises(CacheError, match=r"needs SQLite 3\.37"):
        connect(tmp_path / "x.sqlite", write=True)
    warnings = kit.Warnings()
    with Store.open_or_memory(tmp_path / "x.sqlite", warnings.append) as store:
        assert store.add_trial(kit.some_trial()) == 1 and len(warnings) == 1
        (table,) = store._connection.execute("SELECT sql FROM sqlite_master LIMIT 1").fetchone()
        assert "STRICT" not in table
