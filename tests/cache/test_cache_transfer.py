"""Exports and merges: nothing lost, nothing believed, the same result in any order."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import signal
import sqlite3
from collections.abc import Callable
from dataclasses import fields, replace
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import clk_cache as kit
from clkiln.cache import codec, exchange
from clkiln.cache.exchange import read_export, write_export
from clkiln.cache.learnt import FactRow, Learnt, ProgramRow, merge
from clkiln.cache.merging import read_learnt
from clkiln.cache.rows import DriverRow, RunRow, TrialRow
from clkiln.cache.store import Store
from clkiln.errors import CacheError

few = settings(kit.quick, max_examples=15)
#: JSON has no infinity, and an export leaves such a value out.
values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(-1, 1) | kit.texts,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(kit.texts, inner, max_size=2),
    max_leaves=4,
)

#: Few values each, so that rows of different files meet.
stamps = st.sampled_from([f"2026-01-0{day}T00:00:00Z" for day in range(1, 4)])
names = st.sampled_from(["a", "b"])
times = st.sampled_from([0.5, 1.0, 2.0])
infos = st.dictionaries(kit.texts, values, max_size=2)
rows = st.builds(
    Learnt,
    drivers=st.lists(
        st.builds(DriverRow, driver=names, info=infos, first_seen=stamps), max_size=3
    ).map(tuple),
    best=st.lists(
        st.builds(
            kit.some_best, workload=names, driver=names, digest=names, config=names, time=times,
            complete=st.booleans(), updated=stamps,
        ),
        max_size=5,
    ).map(tuple),
    trials=st.lists(
        st.builds(
            kit.some_trial, workload=names, driver=names, config=names,
            time=st.none() | times, message=kit.texts, created=stamps,
        ),
        max_size=5,
    ).map(tuple),
    facts=st.lists(
        st.builds(FactRow, name=names, driver=names, value=values, updated=stamps),
        max_size=4,
    ).map(tuple),
    programs=st.lists(
        st.builds(
            lambda key, payload, **rest: ProgramRow(
                key, sha256=codec.seal(key, payload), payload=payload, **rest
            ),
            key=names, payload=st.binary(max_size=9), label=names, driver=names, created=stamps,
        ),
        max_size=3,
    ).map(tuple),
)  # fmt: skip
#: As a file must be: every driver is described.
described = rows.map(
    lambda r: merge([r, Learnt(tuple(DriverRow(d, {}, "2026-01-09T00:00:00Z") for d in "ab"))])
)


def content(store: Store) -> list[Any]:
    """All that readers see of what was merged, ids included."""
    other = [store.best_of_other_driver(w, d, "c") for w in "ab" for d in "ab"]
    found = [store.drivers(), store.best_rows(), other]
    table = "SELECT * FROM binaries ORDER BY key"
    return [*found, store.trials(), store.facts(), store._connection.execute(table).fetchall()]


def filled(local: Learnt) -> Store:
    """A store in memory that made ``local`` itself: its trials belong to runs."""
    store = kit.memory_store()
    for name in "ab":
        store.start_run(RunRow("model", "fast", name))
    store.merge(local)
    store._connection.execute("UPDATE trials SET run = 1 + id % 2")
    return store


@few
@given(rows, st.lists(rows, max_size=3))
def test_the_order_of_merging_does_not_count(local: Learnt, parts: list[Learnt]) -> None:
    found = []
    for order in permutations(parts):
        with filled(local) as store:
            for part in order:
                store.merge(part)
            found.append(content(store))
    with filled(local) as store:
        store.merge(merge(parts))
        found.append(content(store))
        for part in parts:
            assert not any(store.merge(part).values()), "once more is nothing new"
        found.append(content(store))
    assert all(each == found[0] for each in found)


@few
@given(rows, rows)
def test_nothing_is_lost_in_a_merge(local: Learnt, more: Learnt) -> None:
    with filled(local) as store:
        before = store.trials()
        store.merge(more)
        learnt = store.learnt(programs=True)
        trials, known = store.trials(), set(map(repr, before))
    plain = [repr(replace(row, id=None)) for row in trials if row.run is not None]
    assert sorted(plain) == sorted(repr(replace(row, id=None)) for row in before)
    assert {repr(replace(row, run=None, id=None)) for row in trials} == {
        repr(row) for row in (*merge([local]).trials, *more.trials)
    }
    assert len(known) == len(before)
    for table, key in (("best", lambda r: (r.workload, r.driver, r.digest)),
                       ("facts", lambda r: (r.name, r.driver)),
                       ("programs", lambda r: r.key), ("drivers", lambda r: r.driver)):  # fmt: skip
        wanted = {key(row) for row in (*getattr(local, table), *getattr(more, table))}
        assert [key(row) for row in getattr(learnt, table)] != [] or not wanted
        assert {key(row) for row in getattr(learnt, table)} == wanted
    for row in learnt.best:
        same = [r for r in (*local.best, *more.best) if r.workload == row.workload
                and r.driver == row.driver and r.digest == row.digest]  # fmt: skip
        assert (row.complete, row.updated) == max((r.complete, r.updated) for r in same)


@few
@given(described)
def test_an_export_gives_back_what_it_was_made_of(
    tmp_path_factory: pytest.TempPathFactory, learnt: Learnt
) -> None:
    path = tmp_path_factory.getbasetemp() / "x.jsonl"
    write_export(path, learnt)
    data = path.read_bytes()
    assert data.isascii() and read_export(path) == learnt
    with kit.memory_store() as store:
        store.merge(read_export(path))
        write_export(path, store.learnt(programs=True))
    assert path.read_bytes() == data


def some_export(path: Path) -> list[bytes]:
    """An export of each kind of row, as lines."""
    stamp = "2026-01-01T00:00:00Z"
    row = ProgramRow("key", "label", "driver", stamp, codec.seal("key", b"payload"), b"payload")
    learnt = Learnt(
        (DriverRow("driver", {"name": "a device"}, stamp),), (kit.some_best(updated=stamp),),
        tuple(kit.some_trial(created=stamp, config=f"{i}") for i in range(3)),
        (FactRow("fact", "driver", [1, None], stamp),), (row,),
    )  # fmt: skip
    write_export(path, learnt)
    return path.read_bytes().splitlines(keepends=True)


def sealed(lines: list[bytes]) -> bytes:
    """Lines of somebody who knows how the last one is made."""
    body = b"".join(lines)
    end = {"rows": len(lines) - 1, "sha256": hashlib.sha256(body).hexdigest()}
    return body + json.dumps(end).encode() + b"\n"


def test_a_damaged_export_is_refused(tmp_path: Path) -> None:
    """Cut at any byte, any bit turned: one clear error, and never another row."""
    path = tmp_path / "x.jsonl"
    data = b"".join(some_export(path))
    rng = random.Random(7)
    for at in [*range(0, len(data), 29), len(data) - 1]:
        path.write_bytes(data[:at])
        with pytest.raises(CacheError, match=r"x\.jsonl (is cut short|is no export|is damaged)"):
            read_export(path)
    for _ in range(150):
        hurt = bytearray(data)
        hurt[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(hurt)
        with pytest.raises(CacheError) as error:
            read_export(path)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "is no export"),
        (b"\n", "is no export"),
        (b"hello\n", "is no export"),
        (b'{"a": 1}\n', "is no export"),
        (b"[" * 900 + b"\n", "is no export"),
        (bytes(5000), "is no export"),
        (kit.filled(), "is a cache file and no export"),
        (b'{"clkiln export": 2}\n', "update clkiln"),
        (b'{"clkiln export": "x"}\n', "update clkiln"),
        (b'{"clkiln export": 1}\n', "is cut short"),
        (b'{"clkiln export": 1}\n' + b"[" * 100_000 + b"\n", "damaged in line 2"),
        (sealed([b'{"clkiln export": 1}\n']) + b"more\n", "is damaged"),
    ],
)
def test_a_foreign_file_is_refused(tmp_path: Path, data: bytes, expected: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(data)
    with pytest.raises(CacheError, match=expected):
        read_export(path)
    if not data.startswith(b'{"clkiln'):
        with pytest.raises(CacheError, match="no export: name another file"):
            write_export(path, Learnt())
        assert path.read_bytes() == data
    with pytest.raises(CacheError, match="could not be read"):
        read_export(tmp_path / "missing")
    with pytest.raises(CacheError, match="could not be written"):
        write_export(tmp_path / "missing" / "x", Learnt())


class Number(float):
    """A number that is written as ``text``."""

    def __new__(cls, text: str) -> Number:
        return super().__new__(cls)

    def __init__(self, text: str) -> None:
        self.text = text


def nested(depth: int) -> Any:
    """An object of objects; written as a mark, for Python can't write all of them."""
    return {"nested": depth}


def dumped(value: Any) -> bytes:
    """JSON with what JSON's writers refuse to write."""

    def write(value: Any) -> str:
        if isinstance(value, Number):
            return value.text
        if isinstance(value, dict) and value.keys() == {"nested"}:
            return '{"a":' * value["nested"] + "1" + "}" * value["nested"]
        if isinstance(value, dict):
            return "{" + ", ".join(f"{json.dumps(k)}: {write(v)}" for k, v in value.items()) + "}"
        return json.dumps(value)

    return write(value).encode() + b"\n"


#: kind of row -> field -> values that no store would have written.
WRONG: dict[str, dict[str, list[Any]]] = {
    "driver": {
        "driver": ["", 1],
        "info": [[], "x", {"units": Number("1e999")}, nested(60), nested(900)],
        "first_seen": ["", "yesterday", 5],
    },
    "best": {
        "time": [0, -1, "1", None, True, 10**400],
        "complete": [1, "true"],
        "updated": ["", "2026-01-01T00:00:00Z\n"],
        "workload": [None, 5, "\ud800", "x" * (exchange.MOST_TEXT + 1)],
        "driver": ["unknown"],
    },
    "trial": {
        "status": ["fine", ""],
        "repeats": [-1, 1.5, 2**63],
        "error": [-0.5, Number("-1e999")],
        "layout": [1],
    },
    "fact": {
        "updated": [None],
        "name": [[]],
        "value": [Number("1e400"), nested(60), nested(90_000)],
    },
    "program": {"payload": ["%%", "AAAA", 1], "sha256": ["", "é"], "key": ["other"]},
}


@pytest.mark.parametrize("kind", WRONG)
def test_every_field_is_checked(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.jsonl"
    *lines, _ = some_export(path)
    at = next(i for i, line in enumerate(lines) if line.startswith(f'{{"{kind}"'.encode()))
    row = json.loads(lines[at])[kind]
    changes = [{name: value} for name, values in WRONG[kind].items() for value in values]
    hurt = [{**row, **change} for change in changes] + [{}, {**row, "id": 1}]
    hurt += [{name: value for name, value in row.items() if name != left} for left in row]
    for changed in [*hurt, [], "x", None]:
        path.write_bytes(sealed([*lines[:at], dumped({kind: changed}), *lines[at + 1 :]]))
        with pytest.raises(CacheError, match="is damaged"):
            read_export(path)
    for line in (b'{"best": NaN}\n', b'{"unknown": {}}\n', b"{}\n", b"1\n", b'{"a":1,"b":2}\n'):
        path.write_bytes(sealed([*lines, line]))
        with pytest.raises(CacheError, match="is damaged in line"):
            read_export(path)


def test_sizes_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.jsonl"
    lines = some_export(path)
    monkeypatch.setattr(exchange, "MOST_ROWS", len(lines) - 3)
    with pytest.raises(CacheError, match="has more than"):
        read_export(path)
    monkeypatch.undo()
    monkeypatch.setattr(exchange, "MOST_LINE", 100)
    with pytest.raises(CacheError, match="has a line 2 of more than"):
        read_export(path)


def test_a_program_with_another_digest_is_not_exported(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    path.write_bytes(kit.filled())
    with Store.open(path) as store:
        store._connection.execute("UPDATE binaries SET payload = x'00' WHERE key = 'key 3'")
        store._connection.execute("UPDATE best SET config = '' WHERE workload = 'w3'")
        store._connection.execute("UPDATE drivers SET info = '[' WHERE driver = 'driver'")
        learnt = store.learnt(programs=True)
    assert {row.key for row in learnt.programs} == kit.BINARIES.keys() - {"key 3"}
    assert learnt.drivers == () and base64.b64encode(b"") == b""


def test_what_an_import_would_refuse_is_not_exported(tmp_path: Path) -> None:
    """Nor counted, and with a driver go its rows: what was written can be read."""
    path, stamp = tmp_path / "x.jsonl", "2026-01-01T00:00:00Z"
    deep: Any = 1
    for _ in range(900):
        deep = [deep]
    infos: list[dict[str, Any]] = [{"a": 1}, {"a": float("inf")}, {"a": deep}, {"a": "\ud800"}]
    learnt = merge([
        Learnt(
            tuple(DriverRow(f"d{i}", info, stamp) for i, info in enumerate(infos)),
            tuple(kit.some_best(driver=f"d{i}", updated=stamp) for i in range(5)),
            (kit.some_trial(driver="d0", created=stamp, time=float("inf")),),
            tuple(FactRow(f"f{i}", "d0", value, stamp) for i, value in enumerate([1, deep, [2]])),
        )
    ])  # fmt: skip
    written = write_export(path, learnt)
    assert [row.driver for row in written.drivers] == ["d0"] and not written.trials
    assert [row.driver for row in written.best] == ["d0"]
    assert [row.value for row in written.facts] == [1, [2]]
    assert read_export(path) == written


def test_any_bit_that_turns_is_a_row_less_or_a_clear_error(tmp_path: Path) -> None:
    """Also where it makes bytes of a text: a column's type is one bit of the file."""
    path = tmp_path / "x.sqlite"
    with Store.open(path) as store:
        some_export(tmp_path / "x.jsonl")
        store.merge(read_export(tmp_path / "x.jsonl"))
        whole = store.learnt(programs=True)
    data, less, errors = path.read_bytes(), 0, 0
    for at in (at for at in range(100, len(data)) if data[at] >= 13 and data[at] % 2):
        hurt = bytearray(data)
        hurt[at] ^= 1
        connection = sqlite3.connect(":memory:")
        try:
            connection.deserialize(bytes(hurt))
            found = read_learnt(connection, programs=True)
        except (sqlite3.Error, UnicodeDecodeError):
            errors += 1
            continue
        finally:
            connection.close()
        assert list(exchange._lines(exchange._acceptable(found)))
        less += sum(found.counts().values()) < sum(whole.counts().values())
    assert less > 10 and errors > 10


def _deny(store: Store) -> None:
    """What comes after the first rows fails."""
    store._connection.execute(
        "CREATE TEMP TRIGGER no BEFORE INSERT ON main.trials BEGIN SELECT RAISE(ABORT, 'no'); END"
    )


def _full(store: Store) -> None:
    (pages,) = store._connection.execute("PRAGMA page_count").fetchone()
    store._connection.execute(f"PRAGMA max_page_count = {pages}")


@pytest.mark.parametrize("hurt", [_deny, _full])
def test_a_merge_that_fails_changes_nothing(tmp_path: Path, hurt: Callable[[Store], None]) -> None:
    path = tmp_path / "x.sqlite"
    path.write_bytes(kit.filled())
    trials = tuple(kit.some_trial(config=f"{i}" * 900, created=codec.now()) for i in range(90))
    best = tuple(kit.some_best(workload=f"w{i}", updated="9") for i in range(30))
    with Store.open(path) as store:
        before = content(store)
        hurt(store)
        with pytest.raises(CacheError):
            store.merge(Learnt(best=best, trials=trials))
        assert content(store) == before

        def refuse(name: str, values: list[Any]) -> Any:
            raise CacheError("contradiction")

        with pytest.raises(CacheError, match="contradiction"):
            store.merge(Learnt(best=best, facts=(FactRow("f", "d", 1, "9"),)), refuse)
        assert content(store) == before


def test_a_merge_that_is_killed_changes_nothing(tmp_path: Path) -> None:
    script = """
        import os, signal, sys
        from pathlib import Path
        from clkiln.cache.learnt import Learnt
        from clkiln.cache.rows import TrialRow
        from clkiln.cache.store import Store

        store = Store.open(Path(sys.argv[1]))
        store._connection.execute("PRAGMA cache_size = 1")  # pages reach the file before the end
        store._connection.create_function("kill", 0, lambda: os.kill(os.getpid(), signal.SIGKILL))
        store._connection.execute(
            "CREATE TEMP TRIGGER t AFTER INSERT ON main.trials WHEN new.config = '200'"
            " BEGIN SELECT kill(); END"
        )
        stamps = ["0001-01-01T00:00:00Z"] * 300
        rows = [TrialRow("w", "d", "g", f"{i}", "ok", created=s) for i, s in enumerate(stamps)]
        store.merge(Learnt(trials=tuple(rows)))
    """
    path = tmp_path / "x.sqlite"
    path.write_bytes(kit.filled())
    with Store.open(path) as store:
        before = content(store)
    process = kit.start_python(script, path)
    assert process.communicate(timeout=60) == ("", "")
    assert process.returncode == -signal.SIGKILL
    assert path.with_name("x.sqlite-journal").exists()
    with Store.open(path, warn=pytest.fail) as store:
        assert content(store) == before
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA quick_check").fetchall() == [("ok",)]
    connection.close()


def test_every_column_of_a_row_moves() -> None:
    """A column that is new in a table is not forgotten in an export."""
    for kind, (table, of) in exchange._KINDS.items():
        assert table in {f.name for f in fields(Learnt)}, kind
        with kit.memory_store() as store:
            real = {"programs": "binaries"}.get(table, table)
            found = store._connection.execute(f"SELECT * FROM {real}").description
        columns = {column[0] for column in found} - {"id", "run", "size", "used"}
        assert columns == {f.name for f in fields(of)} - {"id", "run"}
    assert {f.name for f in fields(TrialRow)} >= {"run", "id"}
