"""A file shipped with a device is read under the user's own, and never written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import clk_cache as kit
from clkiln.cache.layered import LayeredStore
from clkiln.cache.paths import cache_file, shipped_file
from clkiln.cache.store import Store


@pytest.fixture
def own(cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The path of a device's file, for which a filled one was shipped."""
    monkeypatch.setenv("CLKILN_SYSTEM_CACHE_DIR", str(tmp_path / "system"))
    path = cache_file("a device", "a platform")
    (tmp_path / "system").mkdir()
    (tmp_path / "system" / path.name).write_bytes(kit.filled())
    return path


def shipped(own: Path) -> Path:
    path = shipped_file(own)
    assert path is not None
    return path


def _start(own: Path, warnings: kit.Warnings) -> dict[str, object]:
    with LayeredStore.open_or_memory(own, warnings.append) as store:
        found = kit.everything(store)
    return {name: found[name] for name in ("best", "other", "binaries", "facts", "all facts")}


def test_a_shipped_file_is_used_and_stays_as_it_is(own: Path) -> None:
    before = shipped(own).read_bytes()
    folder = sorted(shipped(own).parent.iterdir())
    with Store.open(shipped(own), write=False) as store:
        whole = kit.everything(store)
    warnings = kit.Warnings()
    with LayeredStore.open_or_memory(own, warnings.append) as store:
        found = kit.everything(store)
        for part in ("best", "other", "binaries", "facts", "all facts", "trials"):
            assert found[part] == whole[part]
        assert store.best_rows() == whole["reports"][1]
        assert store.path == own and store.persistent
        # What is new goes over it.
        better = kit.some_best(workload="w3", config="better")
        store.set_best(better)
        store.set_fact("quick", 13)
        store.put_binary("new", b"payload", label="", driver="driver")
        store.put_binary("key 2", b"another", label="", driver="driver")
        store.add_trial(kit.some_trial(workload="w3"))
        store.drop_binaries(["key 5"])
        store.prune(max_size=1)
        store.put_binary("key 2", b"another", label="", driver="driver")
    with LayeredStore.open(own, write=False, warn=warnings.append) as store:
        row = store.best("w3", "driver", "digest")
        assert row is not None and replace(row, updated="") == better
        rows = {row.workload: row.config for row in store.best_rows(driver="driver")}
        assert len(rows) == 30 and rows["w3"] == "better" and rows["w4"] == "config 4" * 10
        assert store.fact("quick") == 13 and store.facts()["quick", ""] == 13
        assert store.fact("roof") == kit.FACTS["roof"] and store.facts("driver") == {}
        found = store.get_binaries([*kit.BINARIES, "new"])
        assert found == {**kit.BINARIES, "key 2": b"another"}
        assert len(store.trials()) == 61 and len(store.trials(workload="w3")) == 11
        assert store.info()["rows"]["best"] == 1 and len(store.binaries()) == 1
    assert warnings == [] and shipped(own).read_bytes() == before
    assert sorted(shipped(own).parent.iterdir()) == folder


def test_it_is_used_where_there_is_no_own_file(own: Path) -> None:
    own.mkdir()  # no place for one
    warnings = kit.Warnings()
    assert _start(own, warnings)["binaries"] == kit.BINARIES
    assert len(warnings) == 1 and str(own) in warnings[0]


@pytest.mark.parametrize("content", [b"not SQLite at all", b"", b"SQLite format 3\0" * 300])
def test_one_that_cannot_be_used_is_a_warning(own: Path, content: bytes) -> None:
    shipped(own).write_bytes(content)
    warnings = kit.Warnings()
    assert _start(own, warnings)["binaries"] == {}
    assert len(warnings) == 1 and str(shipped(own)) in warnings[0]
    assert shipped(own).read_bytes() == content


def test_one_that_others_can_write_is_not_used(own: Path) -> None:
    shipped(own).chmod(0o666)
    warnings = kit.Warnings()
    assert _start(own, warnings)["binaries"] == {}
    assert len(warnings) == 1 and "is not used, as everybody can write" in warnings[0]


def test_a_damaged_program_in_it_is_a_miss(own: Path) -> None:
    with Store.open(shipped(own)) as store:
        store._connection.execute("UPDATE binaries SET payload = x'00' WHERE key = 'key 3'")
    before, warnings = shipped(own).read_bytes(), kit.Warnings()
    found = _start(own, warnings)["binaries"]
    assert found == {k: v for k, v in kit.BINARIES.items() if k != "key 3"}
    assert len(warnings) == 1 and shipped(own).read_bytes() == before


def test_a_missing_one_is_no_error(own: Path) -> None:
    shipped(own).unlink()
    assert _start(own, kit.Warnings())["binaries"] == {}
    with LayeredStore.open_or_memory(own, pytest.fail) as store:
        assert store._shipped is None


def test_the_own_file_is_not_its_own_layer(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLKILN_SYSTEM_CACHE_DIR", str(own.parent))
    kit.fill(own)
    with LayeredStore.open_or_memory(own, pytest.fail) as store:
        assert store._shipped is None and len(store.trials()) == 60


def test_a_file_that_was_named_stands_alone(own: Path, tmp_path: Path) -> None:
    assert shipped_file(tmp_path / own.name) is None
    with LayeredStore.open(tmp_path / own.name) as store:
        assert store.get_binaries(kit.BINARIES) == {}
