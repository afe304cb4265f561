"""No fault of the file stops a start, and no byte that was not put there comes out as a binary."""

from __future__ import annotations

import os
import random
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import clk_cache as kit
from clkiln.cache import connection
from clkiln.cache.rows import DriverRow
from clkiln.cache.store import Store
from clkiln.errors import CacheError

PAGE = 4096


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("sound") / "x.sqlite"
    kit.fill(path)
    return path.read_bytes()


def _start(path: Path) -> tuple[dict[str, object], kit.Warnings, bool]:
    """Everything a start does with the file: no exception, a warning of each kind at most."""
    warnings = kit.Warnings()
    with Store.open_or_memory(path, warnings.append) as store:
        found = kit.everything(store)
        store.add_trial(kit.some_trial())
        store.put_binary("new", b"payload", label="", driver="")
        store.set_fact("new", 1)
        persistent = store.persistent
    assert len(warnings) <= (3 if persistent else 1)
    assert len({text.split(" holds ")[0] for text in warnings}) == len(warnings)
    assert not any("\n" in text for text in warnings)
    binaries = found["binaries"]
    assert isinstance(binaries, dict) and binaries.items() <= kit.BINARIES.items()
    return found, warnings, persistent


def test_a_sound_file_gives_no_warning(sound: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    path.write_bytes(sound)
    found, warnings, persistent = _start(path)
    assert persistent and not warnings and found["binaries"] == kit.BINARIES


def _mutated(sound: bytes, kind: str, rng: random.Random) -> bytes:
    data = bytearray(sound)
    pages = len(data) // PAGE
    page = rng.randrange(pages) * PAGE
    other = rng.randrange(pages) * PAGE
    match kind:
        case "truncated":
            del data[rng.randrange(1, len(data)) :]
        case "truncated to pages":
            del data[max(page, PAGE) :]
        case "zeroed page":
            data[page : page + PAGE] = bytes(PAGE)
        case "random page":
            data[page : page + PAGE] = rng.randbytes(PAGE)
        case "swapped pages":
            first, second = data[page : page + PAGE], data[other : other + PAGE]
            data[page : page + PAGE], data[other : other + PAGE] = second, first
        case "flipped bit":
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        case "flipped header bit":
            data[rng.randrange(200)] ^= 1 << rng.randrange(8)
        case "all but the first page zeroed":
            data[PAGE:] = bytes(len(data) - PAGE)
        case "random bytes":
            data[:] = rng.randbytes(rng.randrange(1, 3 * PAGE))
        case "random after the header":
            data[100:] = rng.randbytes(len(data) - 100)
    return bytes(data)


KINDS = [
    "truncated",
    "truncated to pages",
    "zeroed page",
    "random page",
    "swapped pages",
    "flipped bit",
    "flipped header bit",
    "all but the first page zeroed",
    "random bytes",
    "random after the header",
]


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_never_stops_a_start(sound: bytes, tmp_path: Path, kind: str) -> None:
    rng = random.Random(kind)
    noticed = 0
    for i in range(25):
        path = tmp_path / f"{i}.sqlite"
        data = _mutated(sound, kind, rng)
        path.write_bytes(data)
        found, warnings, persistent = _start(path)
        assert persistent or path.read_bytes() == data
        # A bit of an index may hide a row without a trace; what is plainly broken is told.
        if kind not in ("flipped bit", "swapped pages"):
            assert warnings or found["binaries"] == kit.BINARIES
        noticed += bool(warnings)
    assert noticed or kind in ("flipped bit", "swapped pages")


@pytest.mark.parametrize("table", ["best", "binaries"])
@pytest.mark.parametrize("broken", ["\n\n(", "\xe9 (", "x_ ("])
def test_a_damaged_schema_means_memory(
    sound: bytes, tmp_path: Path, table: str, broken: str
) -> None:
    path = tmp_path / "x.sqlite"
    wanted = f"CREATE TABLE {table} (".encode()
    # SQLite quotes such text in its message, which is then several lines or no UTF-8.
    damaged = wanted[: -len(broken)] + broken.encode("latin-1")
    assert sound.count(wanted) == 1
    path.write_bytes(sound.replace(wanted, damaged))
    before = path.read_bytes()
    with pytest.raises(CacheError):
        Store.open(path)
    _, warnings, persistent = _start(path)
    assert not persistent and len(warnings) == 1 and path.read_bytes() == before


def test_a_lost_table_is_not_made_anew(sound: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    path.write_bytes(sound)
    other = sqlite3.connect(path)
    other.execute("DROP TABLE facts")
    other.close()
    before = path.read_bytes()
    with pytest.raises(CacheError, match=r"damaged \(no table facts\)"):
        Store.open(path)
    _, warnings, persistent = _start(path)
    assert not persistent and len(warnings) == 1 and path.read_bytes() == before


def test_a_row_that_is_no_text_is_a_miss_and_its_neighbours_are_not() -> None:
    warnings = kit.Warnings()
    with kit.memory_store(warnings) as store:
        for i in range(3):
            store.put_driver(DriverRow(f"driver {i}", {}))
        store._connection.execute("UPDATE drivers SET info = '[1]' WHERE driver = 'driver 1'")
        assert [row.driver for row in store.drivers()] == ["driver 0", "driver 2"]
        store.set_best(kit.some_best())
        store._connection.execute("UPDATE best SET config = CAST(x'ff' AS TEXT)")
        assert store.best("gemv|k=1", "driver", "digest") is None
    assert len(warnings) == 1 and "info" in warnings[0]


@kit.quick
@given(st.data())
def test_a_changed_binary_is_a_miss_and_dropped(data: st.DataObject) -> None:
    warnings = kit.Warnings()
    binaries = {"a": b"payload of a", "b": b"payload of b", "c": b"payload of c"}
    with kit.memory_store(warnings) as store:
        for key, payload in binaries.items():
            store.put_binary(key, payload, label="", driver="")
        hurt = data.draw(st.sampled_from(sorted(binaries)))
        payload = data.draw(st.binary(max_size=20).filter(lambda p: p != binaries[hurt]))
        change = "UPDATE binaries SET payload = ? WHERE key = ?"
        store._connection.execute(change, (payload, hurt))
        left = {key: payload for key, payload in binaries.items() if key != hurt}
        assert store.get_binaries(binaries) == left
        assert len(warnings) == 1 and "1 damaged binary" in warnings[0]
        assert {row.key for row in store.binaries()} == set(left)
        store.put_binary(hurt, binaries[hurt], label="", driver="")
        assert store.get_binaries(binaries) == binaries
        assert len(warnings) == 1


#: For rows a and b: how their key, digest and payload change hands.
SWAPS: dict[str, Callable[[tuple[str, str, bytes], tuple[str, str, bytes]], list[Any]]] = {
    "payloads": lambda a, b: [(*a[:2], b[2]), (*b[:2], a[2])],
    "payloads with their digests": lambda a, b: [(a[0], *b[1:]), (b[0], *a[1:])],
    "digests": lambda a, b: [(a[0], b[1], a[2]), (b[0], a[1], b[2])],
    "new keys": lambda a, b: [("c", *a[1:]), ("d", *b[1:])],
    "no digests": lambda a, b: [(a[0], "", a[2]), (b[0], "é", b[2])],
}


@pytest.mark.parametrize("swap", SWAPS)
def test_sound_binaries_under_each_others_keys_are_misses(tmp_path: Path, swap: str) -> None:
    path = tmp_path / "x.sqlite"
    warnings = kit.Warnings()
    with Store.open(path, warn=warnings.append) as store:
        store.put_binary("a", b"payload of a", label="", driver="")
        store.put_binary("b", b"payload of b", label="", driver="")
        table = store._connection
        rows = table.execute("SELECT key, sha256, payload FROM binaries ORDER BY key").fetchall()
        for (key, *_), row in zip(rows, SWAPS[swap](*rows), strict=True):
            change = "UPDATE binaries SET (key, sha256, payload) = (?, ?, ?) WHERE key = ?"
            table.execute(change, (*row, key))
    with Store.open(path, write=False, warn=warnings.append) as store:
        assert store.get_binaries("abcd") == {}
        assert len(store.binaries()) == 2  # a reader drops nothing
    with Store.open(path, warn=warnings.append) as store:
        assert store.get_binaries("abcd") == {}
        assert store.binaries() == []
    assert len(warnings) == 2 and all("2 damaged binaries" in text for text in warnings)


@pytest.mark.parametrize("value", ["not json", "[" * 100_000, "NaN]"])
def test_a_fact_that_is_no_json_is_a_miss(value: str) -> None:
    warnings = kit.Warnings()
    with kit.memory_store(warnings) as store:
        store.set_fact("good", 1)
        store.set_fact("bad", 1)
        store._connection.execute("UPDATE facts SET value = ? WHERE name = 'bad'", (value,))
        assert store.fact("bad") is None and store.fact("good") == 1
        assert store.facts() == {("good", ""): 1}
    assert len(warnings) == 1


def _under_a_file(folder: Path) -> Path:
    (folder / "file").write_text("not a folder")
    return folder / "file" / "x.sqlite"


def _a_folder(folder: Path) -> Path:
    (folder / "x.sqlite").mkdir()
    return folder / "x.sqlite"


def _dangling(folder: Path) -> Path:
    (folder / "x.sqlite").symlink_to(folder / "nowhere")
    return folder / "x.sqlite"


def _a_pipe(folder: Path) -> Path:
    os.mkfifo(folder / "x.sqlite")
    return folder / "x.sqlite"


def _no_home(folder: Path) -> Path:
    return Path("~/clkiln/x.sqlite")


def _too_long(folder: Path) -> Path:
    return folder / ("x" * 300)


@pytest.mark.parametrize(
    "place", [_under_a_file, _a_folder, _dangling, _a_pipe, _no_home, _too_long]
)
def test_a_place_without_a_file_means_memory(
    tmp_path: Path, place: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = place(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(CacheError):
        Store.open(path)
    warnings = kit.Warnings()
    with Store.open_or_memory(path, warnings.append) as store:
        store.put_binary("a", b"payload", label="", driver="")
        assert store.get_binaries(["a"]) == {"a": b"payload"}
        assert not store.persistent and store.path is None and store.info()["size"] == 0
    assert len(warnings) == 1 and str(path) in warnings[0]
    assert sorted(tmp_path.rglob("*")) == before


def test_a_file_that_cannot_be_written_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.sqlite"
    kit.fill(path)
    before = path.read_bytes()
    # Permission bits do not stop root, so the answer of the system is given here.
    monkeypatch.setattr("clkiln.cache.store.writable", lambda path: False)
    warnings = kit.Warnings()
    with Store.open_or_memory(path, warnings.append) as store:
        assert store.get_binaries(kit.BINARIES) == kit.BINARIES
        assert store.add_trial(kit.some_trial()) == 0
        store.set_fact("a", 1)
        assert store.fact("a") is None and not store.persistent and store.path == path
        assert store.clear(binaries_only=False) == 0
    assert len(warnings) == 1 and "cannot be written" in warnings[0]
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("hurt", "expected"), [(kit.fill_the_disk, "disk is full"), (kit.write_protect, "writable")]
)
def test_a_write_that_fails(tmp_path: Path, hurt: Callable[[Store], None], expected: str) -> None:
    path = tmp_path / "x.sqlite"
    kit.fill(path)
    big = bytes(200_000)
    with Store.open(path) as store:
        hurt(store)
        with pytest.raises(CacheError, match=expected):
            store.put_binary("big", big, label="", driver="")
        assert store.get_binaries([*kit.BINARIES, "big"]) == kit.BINARIES
    warnings = kit.Warnings()
    with Store.open_or_memory(path, warnings.append) as store:
        hurt(store)
        for _ in range(3):
            store.put_binary("big", big, label="", driver="")
        assert store.add_trial(kit.some_trial(message="x" * 200_000)) == 0
        assert store.get_binaries([*kit.BINARIES, "big"]) == kit.BINARIES
    assert len(warnings) == 1 and expected in warnings[0]
    with Store.open(path) as store:
        assert store.add_trial(kit.some_trial()) == 61


def test_a_locked_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "BUSY_TIMEOUT", 0.3)
    path = tmp_path / "x.sqlite"
    kit.fill(path)
    warnings = kit.Warnings()
    with Store.open_or_memory(path, warnings.append) as store, Store.open(path) as strict:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        began = time.monotonic()
        assert store.best("w1", "driver", "digest") is None
        for i in range(10):
            store.best(f"w{i}", "driver", "digest")
        # One wait of 0.3 s and short ones, not 11 of 0.3 s.
        assert time.monotonic() - began < 2.5
        assert store.add_trial(kit.some_trial()) == 0
        assert [("locked" in text) for text in warnings] == [True, True]  # one read, one write
        with pytest.raises(CacheError, match="locked"):
            strict.add_trial(kit.some_trial())
        with pytest.raises(CacheError, match="locked"):
            Store.open(path)
        with Store.open_or_memory(path, warnings.append) as late:
            assert not late.persistent and len(warnings) == 3
        other.execute("ROLLBACK")
        other.close()
        assert store.best("w1", "driver", "digest") is not None
        assert strict.add_trial(kit.some_trial()) == 61


def test_a_closed_store_is_the_callers_mistake(tmp_path: Path) -> None:
    with Store.open_or_memory(tmp_path / "x.sqlite", pytest.fail) as store:
        pass
    with pytest.raises(sqlite3.ProgrammingError):
        store.fact("a")
    with pytest.raises(sqlite3.ProgrammingError):
        store.set_fact("a", 1)


def test_ctrl_c_in_a_write_leaves_nothing_half_done(tmp_path: Path) -> None:
    with Store.open_or_memory(tmp_path / "x.sqlite", pytest.fail) as store:

        def interrupted(database: object) -> None:
            store._connection.execute("DELETE FROM facts")
            raise KeyboardInterrupt

        store.set_fact("a", 1)
        with pytest.raises(KeyboardInterrupt):
            store._write(interrupted, None)
        assert store.fact("a") == 1
        store.set_fact("b", 2)


def test_without_a_place_for_them_warnings_are_pythons(tmp_path: Path) -> None:
    with Store.open(tmp_path / "x.sqlite") as store:
        store.set_fact("a", 1)
        store._connection.execute("UPDATE facts SET value = 'no json'")
        with pytest.warns(RuntimeWarning, match="is damaged"):
            assert store.fact("a") is None
