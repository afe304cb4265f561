"""Verifying: every kind of damage is found, a sound file is sound, and no byte changes."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import clk_cache as kit
from clkiln.cache import schema
from clkiln.cache.store import Store
from clkiln.cache.verify import verify
from clkiln.errors import CacheError


def test_a_sound_file(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    path.write_bytes(kit.filled())
    before = path.read_bytes()
    found = verify(path)
    assert (found.structure, found.unreadable, found.damaged) == ([], {}, [])
    assert found.schema == schema.latest() and found.size == len(before)
    counts = (found.drivers, found.runs, found.trials, found.best, found.binaries)
    assert [len(rows) for rows in counts] == [1, 1, 60, 30, len(kit.BINARIES)]
    assert found.facts == len(kit.FACTS)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@settings(kit.quick, max_examples=30)
@given(data=st.data())
def test_a_changed_byte_of_a_program_is_found(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    # Any payload of this length is in the file in pieces; its first bytes are in one.
    sound = kit.filled()
    key = data.draw(st.sampled_from([k for k, v in kit.BINARIES.items() if len(v) > 2000]))
    piece = kit.BINARIES[key][:64]
    places = [i for i in range(len(sound)) if sound.startswith(piece, i)]
    place = data.draw(st.sampled_from(places)) + data.draw(st.integers(0, 63))
    changed = bytearray(sound)
    changed[place] ^= data.draw(st.integers(1, 255))
    path = tmp_path_factory.mktemp("changed") / "x.sqlite"
    path.write_bytes(changed)
    assert len(verify(path).damaged) == 1
    assert path.read_bytes() == bytes(changed)


@pytest.mark.parametrize(
    ("sql", "table"),
    [
        ("UPDATE drivers SET info = 'not json'", "drivers"),
        ("UPDATE runs SET result = '[1]'", "runs"),
        ("UPDATE facts SET value = '{' WHERE name = 'roof'", "facts"),
        ("UPDATE trials SET config = CAST(x'ff' AS TEXT) WHERE id = 1", ""),
        ("UPDATE binaries SET sha256 = 'ö' WHERE key = 'key 1'", ""),
        ("UPDATE binaries SET size = 1 WHERE key = 'key 1'", ""),
    ],
)
def test_rows_that_make_no_sense(tmp_path: Path, sql: str, table: str) -> None:
    path = tmp_path / "x.sqlite"
    path.write_bytes(kit.filled())
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute(sql)
        connection.commit()
    found = verify(path)
    if table:
        assert found.unreadable == {table: 1}
        assert not found.damaged and not found.structure
    else:
        assert found.damaged or found.unreadable or found.structure


def test_lost_pages_are_found(tmp_path: Path) -> None:
    sound = kit.filled()
    path = tmp_path / "x.sqlite"
    found = 0
    for page in range(1, len(sound) // 4096):
        changed = sound[: page * 4096] + bytes(4096) + sound[(page + 1) * 4096 :]
        path.write_bytes(changed)
        try:
            result = verify(path)
        except CacheError as error:
            assert str(path) in str(error)
            found += 1
        else:
            found += bool(result.structure or result.damaged or result.unreadable)
        assert path.read_bytes() == changed
    # SQLite has no checksum of its own; but no page here is free, and none may be empty.
    assert found == len(sound) // 4096 - 1


def test_an_older_file_is_verified_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in schema.MIGRATIONS[0]:
            connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")
        connection.execute("PRAGMA user_version = 1")
    before = path.read_bytes()
    found = verify(path)
    assert found.schema == 1 and not found.structure
    assert path.read_bytes() == before
    Store.open(path).close()
    assert verify(path).schema == schema.latest()


@pytest.mark.parametrize("content", [b"", b"Dear diary", b"SQLite format 3\0" + bytes(5000)])
def test_what_is_no_cache_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.sqlite"
    with pytest.raises(CacheError, match="does not exist"):
        verify(path)
    path.write_bytes(content)
    with pytest.raises(CacheError, match=r"x\.sqlite"):
        verify(path)
    assert path.read_bytes() == content
