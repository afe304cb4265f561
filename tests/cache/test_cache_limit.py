"""The file stays within its limit: programs make room for programs, and parameters stay."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import clk_cache as kit
from clkiln.cache import store as store_module
from clkiln.cache.codec import now, seal
from clkiln.cache.learnt import Learnt, ProgramRow
from clkiln.cache.store import Store

LIMIT = 300_000


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CLKILN_CACHE_LIMIT", str(LIMIT))
    return tmp_path / "x.sqlite"


def put(store: Store, key: str, size: int) -> None:
    store.put_binary(key, bytes(size), label="", driver="d")


def keys(store: Store) -> list[str]:
    order = "SELECT key FROM binaries ORDER BY rowid"
    return [key for (key,) in store._connection.execute(order)]


@settings(kit.quick, max_examples=20)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 120_000)), max_size=25))
def test_it_never_grows_beyond_it(puts: list[tuple[int, int]]) -> None:
    """Whatever is put in: the last one is there, and what is not made room."""
    with pytest.MonkeyPatch.context() as patch, kit.memory_store() as store:
        patch.setenv("CLKILN_CACHE_LIMIT", f"{LIMIT}B")
        for i in range(40):
            store.add_trial(kit.some_trial(config=f"config {i}" * 20))
        store.set_best(kit.some_best())
        for number, size in puts:
            there = keys(store)
            put(store, f"{number}", size)
            assert store.bytes <= LIMIT
            left = keys(store)
            assert left[-1] == f"{number}"
            others = [key for key in there if key != f"{number}"]
            kept = left[:-1]
            # The oldest went, and only for want of room.
            assert kept == others[len(others) - len(kept) :]
            if len(kept) < len(others):
                assert store.bytes > LIMIT - 2 * 130_000
        assert len(store.trials()) == 40 and len(store.best_rows()) == 1


def test_what_this_start_took_goes_last(path: Path) -> None:
    with Store.open(path) as store:
        for name in "abcd":
            put(store, name, 40_000)
        store._connection.execute("UPDATE binaries SET created = '2020', used = ''")
        assert store.get_binaries("a").keys() == {"a"}
        for name in "efgh":
            put(store, name, 40_000)
        first, *others = keys(store)
        # Older than all that is there, and kept; of the others the oldest went.
        assert first == "a" and others == list("bcdefgh")[-len(others) :] and len(others) < 5
    assert path.stat().st_size <= LIMIT


def test_what_was_taken_today_before_goes_last_too(path: Path) -> None:
    """Its stamp of use is of today, so it is not stamped once more; it is spared all the same."""
    with Store.open(path) as store:
        for name in "abcd":
            put(store, name, 40_000)
        today = now(days_ago=0.5)
        store._connection.execute("UPDATE binaries SET created = '2020', used = ?", (today,))
        assert store.get_binaries("a").keys() == {"a"}
        for name in "efgh":
            put(store, name, 40_000)
        first, *others = keys(store)
        assert first == "a" and others == list("bcdefgh")[-len(others) :] and len(others) < 5


def test_a_limit_that_was_lowered(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store.open(path, warn=pytest.fail) as store:
        for name in "abcd":
            put(store, name, 60_000)
        monkeypatch.setenv("CLKILN_CACHE_LIMIT", "150K")
        put(store, "e", 60_000)
        assert keys(store) == ["e"]
        assert path.stat().st_size <= 150 << 10
        store.add_trial(kit.some_trial())


def test_no_room_is_a_warning_and_parameters_are_kept(path: Path) -> None:
    warnings = kit.Warnings()
    with Store.open(path, warn=warnings.append) as store:
        put(store, "small", 1000)
        for _ in range(3):
            put(store, "large", LIMIT)
        assert keys(store) == ["small"], "nothing was deleted in vain"
        assert store.get_binaries(["small"]) == {"small": bytes(1000)}
        store.add_trial(kit.some_trial(message="x" * LIMIT))
        put(store, "small", 1000)
        assert len(store.trials()) == 1
    assert len(warnings) == 1 and "CLKILN_CACHE_LIMIT" in warnings[0]


def test_imported_programs_count(path: Path) -> None:
    rows = [ProgramRow(f"{i}", "", "d", now(), seal(f"{i}", bytes(60_000)), bytes(60_000))
            for i in range(9)]  # fmt: skip
    with Store.open(path) as store:
        store.merge(Learnt(programs=tuple(rows)))
        assert 0 < len(keys(store)) < 9
    assert path.stat().st_size <= LIMIT


@pytest.mark.parametrize("text", ["much", "-1", "0", "1e9"])
def test_what_is_no_size_is_a_warning(
    path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("CLKILN_CACHE_LIMIT", text)
    warnings = kit.Warnings()
    with Store.open_or_memory(path, warnings.append) as store:
        for name in "ab":
            put(store, name, LIMIT)
        assert len(keys(store)) == 2
    assert len(warnings) == 1 and text in warnings[0] and "512 MiB" in warnings[0]


def test_without_a_word_it_is_512_mib(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CLKILN_CACHE_LIMIT")
    assert store_module.size_limit(lambda kind, text: pytest.fail(text)) == 512 << 20
