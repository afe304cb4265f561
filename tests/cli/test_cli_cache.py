"""``clkiln cache verify`` and ``clkiln cache prune``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import clk_cache
import clk_engine
from clk_cli import Result
from clkiln.cache.rows import DriverRow
from clkiln.cache.store import Store

Call = Callable[..., Result]

#: A driver of the device of the tests that was replaced since.
OLD = "an older driver"


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = clk_engine.used_cache(tmp_path_factory.mktemp("used") / "x.sqlite")
    info = clk_engine.a_device().info
    with Store.open(path) as store:
        store.put_driver(DriverRow(OLD, {"name": info.name, "platform": info.platform}))
        for i in range(3):
            store.put_binary(f"old {i}", bytes(100_000), label="a program", driver=OLD)
    return path.read_bytes()


@pytest.fixture
def cache(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "x.sqlite"
    path.write_bytes(content)
    return path


def rows(path: Path) -> dict[str, int]:
    with Store.open(path, write=False) as store:
        counts: dict[str, int] = store.info()["rows"]
    return counts


def test_verify_a_sound_file(call: Call, cache: Path, content: bytes) -> None:
    result = call("cache", "verify", "--cache", cache)
    assert (result.code, result.err) == (0, "")
    assert result.out.splitlines()[-1] == "verdict   sound"
    assert "3 programs" in result.out and "clkiln cache prune" in result.out
    data = json.loads(call("cache", "verify", "--cache", cache, "--json").out)
    assert data["ok"] is True and data["rows"] == rows(cache)
    assert data["obsolete_binaries"] == 3 and data["damaged_binaries"] == 0
    assert cache.read_bytes() == content, "nothing was written"
    assert all(len(line) <= 80 or str(cache) in line for line in result.out.splitlines())


def test_verify_a_damaged_program(call: Call, cache: Path) -> None:
    with Store.open(cache) as store:
        store._connection.execute("UPDATE binaries SET payload = x'00' WHERE key = 'old 1'")
    before = cache.read_bytes()
    result = call("cache", "verify", "--cache", cache)
    assert (result.code, result.err) == (1, "")
    assert "damage    1 program of" in result.out and "clkiln cache prune" in result.out
    assert result.out.splitlines()[-1] == "verdict   damaged"
    answer = call("cache", "verify", "--cache", cache, "--json")
    data = json.loads(answer.out)
    assert answer.code == 1 and data["ok"] is False and data["damaged_binaries"] == 1
    assert [f["damage"] for f in data["findings"]].count(True) == 1
    assert cache.read_bytes() == before
    assert call("cache", "prune", "--cache", cache).code == 0
    assert call("cache", "verify", "--cache", cache).code == 0


def test_verify_a_file_that_cannot_be_read(call: Call, tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    path.write_bytes(clk_cache.filled()[:5000])
    result = call("cache", "verify", "--cache", path)
    assert result.code == 1 and "damaged" in result.out + result.err
    answer = call("cache", "verify", "--cache", path, "--json")
    assert answer.code == 1 and json.loads(answer.out)["ok"] is False


def test_prune_what_nothing_needs(call: Call, cache: Path, content: bytes) -> None:
    before = rows(cache)
    dry = call("cache", "prune", "--cache", cache, "--dry-run")
    assert dry.code == 0 and dry.out.startswith("would delete 3 programs (293 KiB); ")
    assert cache.read_bytes() == content
    result = call("cache", "prune", "--cache", cache)
    assert result.out == dry.out.replace("would delete", "deleted").replace("would take", "takes")
    assert rows(cache) == {**before, "binaries": before["binaries"] - 3}
    assert cache.stat().st_size < len(content) - 290_000
    with clk_engine.engine(cache=cache, require_cache=True) as engine:
        clk_engine.warm(engine)  # what a start needs is there still
    assert call("cache", "prune", "--cache", cache).out.startswith("deleted 0 programs")


def test_prune_to_a_size(call: Call, cache: Path) -> None:
    before = rows(cache)
    data = json.loads(call("cache", "prune", "--cache", cache, "--max-size", "200K", "--json").out)
    assert data["size_after"] == cache.stat().st_size <= 200 << 10 < data["size_before"]
    after = rows(cache)
    assert after["binaries"] == before["binaries"] - len(data["deleted"])
    assert [row["label"] for row in data["deleted"][:3]] == ["a program"] * 3
    assert {**after, "binaries": 0} == {**before, "binaries": 0}
    result = call("cache", "prune", "--cache", cache, "--max-size", "1K")
    assert result.code == 0 and rows(cache)["binaries"] == 0
    assert "parameters and trials stay" in result.err


def test_prune_what_was_not_used(call: Call, cache: Path) -> None:
    with Store.open(cache) as store:
        sql = "UPDATE binaries SET created = '2020-01-01T00:00:00Z', used = ''"
        store._connection.execute(sql)
        [kept, *_] = [row.key for row in store.binaries() if row.driver != OLD]
        store.get_binaries([kept])
    assert call("cache", "prune", "--cache", cache, "--older-than", 30).code == 0
    with Store.open(cache, write=False) as store:
        assert [row.key for row in store.binaries()] == [kept]


def test_prune_without_the_device(call: Call, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clkiln.runtime.device.list_devices", list)
    before = rows(cache)
    assert call("cache", "prune", "--cache", cache).out.startswith("deleted 0 programs")
    assert rows(cache) == before, "a device that is away may come back"
