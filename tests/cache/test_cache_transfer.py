"""Exports: nothing lost, and nothing believed of what comes in."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import sqlite3
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given

import clk_cache as kit
from clk_learnt import described, few
from clkiln.cache import codec, exchange
from clkiln.cache.exchange import read_export, write_export
from clkiln.cache.learnt import FactRow, Learnt, ProgramRow, merge
from clkiln.cache.merging import read_learnt
from clkiln.cache.rows import DriverRow, TrialRow
from clkiln.cache.store import Store
from clkiln.errors import CacheError


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
