"""Pruning: what goes and in which order, what stays, and that only a copy is tried on."""

from __future__ import annotations

import contextlib
import signal
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import clk_cache as kit
from clkiln.cache import codec
from clkiln.cache.store import Store
from clkiln.errors import CacheError


def at(stamp: int) -> str:
    return f"2026-01-{stamp:02}T00:00:00Z"


def set_times(store: Store, created: dict[str, int], used: dict[str, int]) -> None:
    """Days of January on which programs were put in and taken; 0 is never."""
    for key in created:
        values = (at(created[key]), at(used[key]) if used[key] else "", key)
        sql = "UPDATE binaries SET created = ?, used = ? WHERE key = ?"
        store._connection.execute(sql, values)


programs = st.dictionaries(
    st.sampled_from([f"key {i}" for i in range(12)]),
    st.tuples(st.integers(0, 30_000), st.integers(1, 28), st.integers(0, 28), st.booleans()),
    min_size=1,
)


@kit.quick
@given(programs, st.none() | st.integers(1, 200_000), st.none() | st.integers(1, 28))
def test_what_goes(
    rows: dict[str, tuple[int, int, int, bool]], max_size: int | None, since: int | None
) -> None:
    with kit.memory_store() as store:
        store.set_best(kit.some_best())
        for key, (size, *_) in rows.items():
            store.put_binary(key, bytes(size), label=f"label {key}", driver="d")
        set_times(store, {k: r[1] for k, r in rows.items()}, {k: r[2] for k, r in rows.items()})
        obsolete = {key for key, row in rows.items() if row[3]} | {"unknown"}
        last = {key: max(row[1], row[2]) for key, row in rows.items()}
        due = {key for key in rows if key in obsolete or (since is not None and last[key] < since)}
        stamp = None if since is None else at(since)
        gone = {r.key for r in store.prune(obsolete, max_size=max_size, unused_since=stamp)}
        kept = rows.keys() - gone
        assert {row.key for row in store.binaries()} == kept
        assert gone >= due
        more = gone - due
        if max_size is None:
            assert not more
        else:
            assert store.bytes <= max_size or not kept, "it fits, or nothing is left to delete"
            # The least recently used go first.
            assert not more or not kept or max(map(last.get, more)) <= min(map(last.get, kept))
            # And none too many: with the last of them the file would have been too large.
            pages = sum(-(-rows[key][0] // 4000) + 2 for key in kept)
            latest = max(more, key=lambda key: (last[key], key), default=None)
            if latest is not None:
                assert (pages + -(-rows[latest][0] // 4000) + 40) * 4096 > max_size
        assert store.best_rows(), "parameters stay"
        assert set(store.get_binaries(rows)) == kept


def test_the_file_shrinks_and_stays_sound(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    path.write_bytes(kit.filled())
    with Store.open(path) as store:
        before = kit.everything(store)
        for i in range(4):
            store.put_binary(f"big {i}", bytes(200_000), label="", driver="driver")
    full = path.stat().st_size
    with Store.open(path) as store:
        gone = store.prune({f"big {i}" for i in range(4)})
        assert len(gone) == 4 and store.bytes == path.stat().st_size < full - 700_000
        after = kit.everything(store)
    assert {**after, "info": 0} == {**before, "info": 0}
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    with Store.open(path) as store:
        assert store.prune(max_size=1 << 40) == []
        assert len(store.prune(max_size=1)) == len(kit.BINARIES)
        assert store.info()["rows"]["trials"] == 60


def test_damaged_programs_go_always(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    path.write_bytes(kit.filled())
    with Store.open(path) as store:
        store._connection.execute("UPDATE binaries SET payload = x'00' WHERE key = 'key 3'")
        store._connection.execute(
            "UPDATE binaries SET label = CAST(x'ff' AS TEXT) WHERE key = 'key 4'"
        )
        assert len(store.prune()) == 2
        assert store.get_binaries(kit.BINARIES).keys() == kit.BINARIES.keys() - {"key 3", "key 4"}


def test_what_is_taken_counts_as_used(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    path.write_bytes(kit.filled())
    with Store.open(path) as store:
        set_times(store, dict.fromkeys(kit.BINARIES, 1), dict.fromkeys(kit.BINARIES, 0))
    today = codec.now()
    with Store.open_or_memory(path, pytest.fail) as store:
        store.get_binaries(["key 5", "no such key"])
    with Store.open(path, write=False) as store:
        store.get_binaries(["key 6"])  # who only reads leaves no trace
        used = {row.key: row.used for row in store.binaries()}
    assert used.pop("key 5") >= today
    assert set(used.values()) == {""}
    stamped = path.read_bytes()
    with Store.open_or_memory(path, pytest.fail) as store:
        store.get_binaries(["key 5"])
    assert path.read_bytes() == stamped, "once a day is enough"
    with Store.open(path) as store:
        gone = store.prune(max_size=1)
        assert [row.key for row in gone][-1] == "key 5"


def test_a_note_of_use_is_written_with_a_rollback_journal(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    path.write_bytes(kit.filled())
    with Store.open(path) as store:
        set_times(store, dict.fromkeys(kit.BINARIES, 1), dict.fromkeys(kit.BINARIES, 0))
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute("PRAGMA journal_mode = WAL")
    with Store.open_or_memory(path, pytest.fail) as store:
        store.get_binaries(["key 5"])
    with contextlib.closing(sqlite3.connect(path)) as other:
        assert other.execute("PRAGMA journal_mode").fetchone() == ("delete",)
        sql = "SELECT count(*) FROM binaries WHERE used <> ''"
        assert other.execute(sql).fetchone() == (1,)


def test_a_note_of_use_waits_for_nobody(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    path.write_bytes(kit.filled())
    with Store.open(path) as store:
        set_times(store, dict.fromkeys(kit.BINARIES, 1), dict.fromkeys(kit.BINARIES, 0))
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        store = Store.open_or_memory(path, pytest.fail)
        assert store.get_binaries(kit.BINARIES) == kit.BINARIES
        began = time.monotonic()
        store.close()
        assert time.monotonic() - began < 4
        other.execute("ROLLBACK")
    with pytest.raises(sqlite3.ProgrammingError):
        store.drivers()


def test_a_trial_on_a_copy_leaves_the_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    path.write_bytes(kit.filled())
    before = path.read_bytes()
    with Store.open_copy(path) as copy:
        planned = copy.prune(max_size=60_000)
        would_have = copy.bytes
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
    with Store.open(path) as store:
        assert store.prune(max_size=60_000) == planned and planned
    assert path.stat().st_size == would_have


def test_a_held_file_is_left_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clkiln.cache.connection.BUSY_TIMEOUT", 0.05)
    path = tmp_path / "x.sqlite"
    path.write_bytes(kit.filled())
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with Store.open(path) as store, pytest.raises(CacheError, match="locked"):
            store.prune(max_size=1)
        other.execute("ROLLBACK")
        # A reader in the middle of its work: rows go, the file shrinks another time.
        other.execute("BEGIN")
        other.execute("SELECT count(*) FROM binaries").fetchone()
        with Store.open(path) as store, pytest.raises(CacheError, match="locked"):
            store.prune(max_size=1)
        other.execute("ROLLBACK")
    with Store.open(path) as store:
        assert store.get_binaries(kit.BINARIES) == kit.BINARIES


@pytest.fixture
def killed(tmp_path: Path) -> Iterator[Path]:
    """A file whose pruning was killed before its end, with a journal beside it."""
    path = tmp_path / "x.sqlite"
    path.write_bytes(kit.filled())
    script = """
        import os, signal, sys
        from pathlib import Path
        from clkiln.cache import store as room
        from clkiln.cache.store import Store

        def cut_short(connection, *rest):
            connection.execute("PRAGMA cache_size = 1")  # pages reach the file before the end
            connection.execute("UPDATE trials SET message = hex(zeroblob(9000))")
            assert prune(connection, *rest)
            os.kill(os.getpid(), signal.SIGKILL)

        prune, room.prune = room.prune, cut_short
        Store.open(Path(sys.argv[1])).prune(max_size=1)
    """
    process = kit.start_python(script, path)
    assert process.communicate(timeout=60) == ("", "")
    assert process.returncode == -signal.SIGKILL
    assert path.with_name("x.sqlite-journal").exists()
    yield path


def test_a_killed_pruning_deletes_nothing(killed: Path) -> None:
    before = {path.name: path.read_bytes() for path in killed.parent.iterdir()}
    with Store.open_copy(killed) as copy:
        assert copy.get_binaries(kit.BINARIES) == kit.BINARIES
    assert {path.name: path.read_bytes() for path in killed.parent.iterdir()} == before
    with Store.open(killed) as store:
        assert store.get_binaries(kit.BINARIES) == kit.BINARIES
