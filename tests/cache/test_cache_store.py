"""What is put into a store comes out of it: every row, every method."""

from __future__ import annotations

import math
import re
import sqlite3
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import clk_cache as kit
from clkiln.cache import codec, schema
from clkiln.cache.rows import BestRow, DriverRow, RunRow, TrialRow
from clkiln.cache.store import Store
from clkiln.errors import CacheError

STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")


@kit.quick
@given(st.lists(kit.drivers, max_size=8))
def test_drivers_come_back(rows: list[DriverRow]) -> None:
    with kit.memory_store() as store:
        for row in rows:
            store.put_driver(row)
        found = {row.driver: row for row in store.drivers()}
        assert {name: row.info for name, row in found.items()} == {r.driver: r.info for r in rows}
        assert all(STAMP.fullmatch(row.first_seen) for row in found.values())


@kit.quick
@given(st.lists(kit.trials, max_size=8))
def test_trials_come_back(rows: list[TrialRow]) -> None:
    with kit.memory_store() as store:
        ids = [store.add_trial(row) for row in rows]
        found = store.trials()
        assert [replace(row, id=None, created="") for row in found] == rows
        assert [row.id for row in found] == ids
        assert all(STAMP.fullmatch(row.created) for row in found)


@kit.quick
@given(st.lists(kit.trials, max_size=8), kit.names, kit.names)
def test_trials_are_narrowed(rows: list[TrialRow], workload: str, driver: str) -> None:
    rows = [*rows, kit.some_trial(workload=workload, driver=driver)]
    with kit.memory_store() as store:
        for row in rows:
            store.add_trial(row)
        for field in ("workload", "driver", "digest", "status"):
            for value in {getattr(row, field) for row in rows}:
                found: list[TrialRow] = store.trials(**{field: value})
                assert [replace(row, id=None, created="") for row in found] == [
                    row for row in rows if getattr(row, field) == value
                ]
        both = store.trials(workload=workload, driver=driver)
        assert both and all((r.workload, r.driver) == (workload, driver) for r in both)


@kit.quick
@given(st.lists(kit.bests, max_size=8))
def test_the_last_best_of_a_key_is_kept(rows: list[BestRow]) -> None:
    last = {(row.workload, row.driver, row.digest): row for row in rows}
    with kit.memory_store() as store:
        for row in rows:
            store.set_best(row)
        for key, row in last.items():
            found = store.best(*key)
            assert found is not None and STAMP.fullmatch(found.updated)
            assert replace(found, updated="") == row
        assert len(store.best_rows()) == len(last)
        for driver in {row.driver for row in rows}:
            of_driver = [row for row in last.values() if row.driver == driver]
            assert len(store.best_rows(driver=driver)) == len(of_driver)
        assert store.best("absent", "driver", "digest") is None


@kit.quick
@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=6))
def test_the_latest_best_of_another_driver(order: list[str]) -> None:
    with kit.memory_store() as store:
        for driver in order:
            store.set_best(kit.some_best(driver=driver, config=f"of {driver}"))
        store.set_best(kit.some_best(driver="d", digest="another kernel"))
        store.set_best(kit.some_best(driver="d", workload="another workload"))
        for asking in "abcd":
            others = [driver for driver in order if driver != asking]
            found = store.best_of_other_driver("gemv|k=1", "digest", asking)
            assert (found and found.driver) == (others[-1] if others else None)


@kit.quick
@given(st.lists(kit.runs, max_size=5), kit.json_objects, kit.seconds)
def test_runs_come_back(rows: list[RunRow], result: dict[str, Any], took: float) -> None:
    with kit.memory_store() as store:
        ids = [store.start_run(row) for row in rows]
        found = store.runs()
        assert [replace(row, id=None, started="") for row in found] == rows
        assert [row.id for row in found] == ids and len(set(ids)) == len(ids)
        for run in ids[:1]:
            store.finish_run(run, took, result)
            ended = store.runs()[0]
            assert (ended.seconds, ended.result) == (took, result)
            assert ended.ended is not None and STAMP.fullmatch(ended.ended)
        assert store.runs()[1:] == found[1:]


@kit.quick
@given(st.dictionaries(kit.texts, st.binary(max_size=3000), max_size=6), st.sets(kit.texts))
def test_binaries_come_back(binaries: dict[str, bytes], absent: set[str]) -> None:
    with kit.memory_store() as store:
        for key, payload in binaries.items():
            store.put_binary(key, b"an older one", label="old", driver="d")
            store.put_binary(key, payload, label=f"label {key}", driver="d")
        assert store.get_binaries([*binaries, *absent]) == binaries
        assert store.get_binaries(absent - set(binaries)) == {}
        listed = {row.key: (row.label, row.size, row.driver) for row in store.binaries()}
        assert listed == {key: (f"label {key}", len(p), "d") for key, p in binaries.items()}


def test_binaries_of_a_plan_take_one_query() -> None:
    with kit.memory_store() as store:
        store.put_binary("key 7", b"payload", label="", driver="")
        # SQLite's default; some distributions allow more.
        store._connection.setlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER, 32_766)
        statements: list[str] = []
        store._connection.set_trace_callback(statements.append)
        for count, queries in ((0, 0), (8, 1), (2000, 1), (70_000, 3)):
            del statements[:]
            expected = {"key 7": b"payload"} if count > 7 else {}
            assert store.get_binaries(f"key {i}" for i in range(count)) == expected
            assert len(statements) == queries


@kit.quick
@given(st.dictionaries(st.tuples(kit.texts, kit.names | st.just("")), kit.json_values, max_size=6))
def test_facts_come_back(facts: dict[tuple[str, str], Any]) -> None:
    with kit.memory_store() as store:
        for (name, driver), value in facts.items():
            store.set_fact(name, "an older one", driver=driver)
            store.set_fact(name, value, driver=driver)
        for (name, driver), value in facts.items():
            assert store.fact(name, driver=driver) == value
        assert store.facts() == facts
        assert store.facts("") == {key: value for key, value in facts.items() if not key[1]}
        assert store.fact("absent", driver="absent") is None


@pytest.mark.parametrize("value", [{1, 2}, object(), b"bytes"])
def test_a_fact_is_json(value: object) -> None:
    with kit.memory_store() as store, pytest.raises(TypeError):
        store.set_fact("name", value)


def test_a_known_driver_is_not_written_again() -> None:
    with kit.memory_store() as store:
        store.put_driver(DriverRow("driver", {"version": "1"}))
        store._connection.execute("UPDATE drivers SET first_seen = 'long ago'")
        before = store._connection.total_changes
        store.put_driver(DriverRow("driver", {"version": "1"}))
        assert store._connection.total_changes == before
        store.put_driver(DriverRow("driver", {"version": "2"}))
        assert store.drivers() == [DriverRow("driver", {"version": "2"}, "long ago")]


def test_nan_becomes_none_and_never_a_best_time() -> None:
    with kit.memory_store() as store:
        store.add_trial(kit.some_trial(status="wrong result", time=None, error=math.nan))
        assert store.trials()[0].error is None
        store.set_best(kit.some_best(time=0.5))
        with pytest.raises(CacheError):
            store.set_best(kit.some_best(time=math.nan))
        kept = store.best("gemv|k=1", "driver", "digest")
        assert kept is not None and kept.time == 0.5


def test_a_compiler_log_that_is_no_utf8_is_kept_readable() -> None:
    log = b"error: caf\xe9".decode("utf-8", "surrogateescape")
    with kit.memory_store() as store:
        store.add_trial(kit.some_trial(message=log))
        assert store.trials()[0].message == r"error: caf\udce9"


@kit.quick
@given(st.data(), st.one_of(kit.trials, kit.bests, kit.runs, kit.drivers))
def test_a_value_of_a_wrong_type_is_refused(data: st.DataObject, row: Any) -> None:
    names = [name.strip() for name in codec.columns(type(row)).split(",")]
    record = {"id": 1, **codec.encode(row)}
    assert codec.decode(type(row), [record[n] for n in names]) == (
        replace(row, id=1) if "id" in names else row
    )
    name = data.draw(st.sampled_from(names))
    with pytest.raises(ValueError, match=r"column|JSON"):
        codec.decode(type(row), [b"bytes" if n == name else record[n] for n in names])


@kit.quick
@given(kit.texts, st.binary(), kit.texts, st.binary())
def test_a_seal_tells_key_from_payload(a: str, x: bytes, b: str, y: bytes) -> None:
    assert (codec.seal(a, x) == codec.seal(b, y)) == ((a, x) == (b, y))
    # The same bytes in sequence, parted elsewhere.
    assert codec.seal(a + b, x) != codec.seal(a, b.encode() + x) or not b


def test_info_counts(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    kit.fill(path)
    with Store.open(path, write=False) as store:
        info = store.info()
    assert info["path"] == str(path) and info["size"] == path.stat().st_size
    assert info["rows"] == {
        "drivers": 1,
        "runs": 1,
        "trials": 60,
        "best": 30,
        "binaries": len(kit.BINARIES),
        "facts": len(kit.FACTS),
    }
    assert info["schema"] == schema.latest() and info["persistent"] is False
    assert info["binary_bytes"] == sum(map(len, kit.BINARIES.values()))
    assert [d["info"]["name"] for d in info["drivers"]] == ["a device"]


def test_clear_keeps_parameters_if_asked_and_frees_space(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    kit.fill(path)
    full = path.stat().st_size
    with Store.open(path) as store:
        parameters = store.best_rows(), store.trials(), store.runs(), store.facts()
        assert store.clear(binaries_only=True) == len(kit.BINARIES)
        assert path.stat().st_size <= full - sum(map(len, kit.BINARIES.values()))
        assert store.binaries() == [] and store.get_binaries(kit.BINARIES) == {}
        assert (store.best_rows(), store.trials(), store.runs(), store.facts()) == parameters
        assert store.clear(binaries_only=False) == 1 + 1 + 60 + 30 + len(kit.FACTS)
        assert set(store.info()["rows"].values()) == {0}
        assert store.clear(binaries_only=False) == 0
        assert store.add_trial(kit.some_trial()) > 0


def test_what_is_written_is_there_at_the_next_start(tmp_path: Path) -> None:
    path = tmp_path / "not yet" / "there" / "x.sqlite"
    kit.fill(path)
    with Store.open(path) as store:
        first = kit.everything(store)
    with Store.open_or_memory(path, pytest.fail) as store:
        assert kit.everything(store) == first
    assert first["binaries"] == kit.BINARIES and first["facts"] == kit.FACTS
    assert None not in first["best"] and len(first["trials"]) == 60


def test_folder_and_file_are_the_users_alone(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "x.sqlite"
    with Store.open(path) as store:
        assert store.persistent and store.path == path
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("name", ["a b", "100%", "what?", "a#b", "é", "a&mode=ro"])
def test_any_file_name_works(tmp_path: Path, name: str) -> None:
    path = tmp_path / name / f"{name}.sqlite"
    with Store.open(path) as store:
        store.set_fact("name", name)
    with Store.open(path, write=False) as store:
        assert store.fact("name") == name
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_reader_does_not_write(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    kit.fill(path)
    before = path.read_bytes()
    with Store.open(path, write=False, warn=pytest.fail) as store:
        kit.everything(store)
        assert not store.persistent
        with pytest.raises(CacheError, match="reading only"):
            store.add_trial(kit.some_trial())
    assert path.read_bytes() == before


def test_a_reader_needs_a_file(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="does not exist"):
        Store.open(tmp_path / "absent.sqlite", write=False)
    (tmp_path / "empty.sqlite").touch()
    with pytest.raises(CacheError, match="is empty"):
        Store.open(tmp_path / "empty.sqlite", write=False)
    assert not (tmp_path / "absent.sqlite").exists()
