"""Changing a fact: read and written in one, or left as it was."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

import pytest

import clk_cache as kit
from clkiln.cache import connection
from clkiln.cache.store import Store
from clkiln.errors import CacheError


@pytest.mark.parametrize("value", ["{", "\xff", "[" * 100_000])
def test_a_value_that_is_no_json_is_replaced(value: str) -> None:
    warnings = kit.Warnings()
    with kit.memory_store(warnings) as store:
        store.set_fact("rules", ["first"])
        store._connection.execute("UPDATE facts SET value = ?", (value,))
        assert store.update_fact("rules", lambda before: [before, "second"]) == [None, "second"]
        assert store.fact("rules") == [None, "second"]
    assert len(warnings) == 1 and "damaged" in warnings[0]


def test_what_cannot_be_read_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor taken for kept, in a store that goes on after everything else."""
    monkeypatch.setattr(connection, "BUSY_TIMEOUT", 0.3)
    path = tmp_path / "x.sqlite"
    with Store.open(path) as store:
        store.set_fact("rules", ["first"])
    with Store.open_or_memory(path, lambda text: None) as store:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        assert store.fact("rules") is None
        began = time.monotonic()
        with pytest.raises(CacheError, match="locked"):
            store.update_fact("rules", lambda before: ["second"])
        assert time.monotonic() - began >= 0.3, "as long as at first"
        other.execute("ROLLBACK")
        other.close()
        assert store.update_fact("rules", lambda before: [*before, "second"])
        kit.write_protect(store)
        with pytest.raises(CacheError, match="writable"):
            store.update_fact("rules", lambda before: [])
    path.chmod(0o400)
    with Store.open(path, write=False) as store, pytest.raises(CacheError, match="reading only"):
        store.update_fact("rules", lambda before: [])
    with Store.open(path, write=False) as store:
        assert store.fact("rules") == ["first", "second"]


def test_what_a_change_of_a_fact_raises_goes_through(tmp_path: Path) -> None:
    def refuse(before: object) -> object:
        raise KeyError(before)

    with Store.open_or_memory(tmp_path / "x.sqlite", pytest.fail) as store:
        store.set_fact("rules", "first")
        with pytest.raises(KeyError, match="first"):
            store.update_fact("rules", refuse)
        assert store.fact("rules") == "first"
        assert store.update_fact("rules", str.upper) == "FIRST"
