"""Merges: nothing lost, the same result in any order, all of it or nothing."""

from __future__ import annotations

import signal
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import clk_cache as kit
from clk_learnt import content, few, filled, rows
from clkiln.cache import codec
from clkiln.cache.learnt import FactRow, Learnt, merge
from clkiln.cache.store import Store
from clkiln.errors import CacheError


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


def _deny(store: Store) -> None:
    """What comes after the first rows fails."""
    store._connection.execute(
        "CREATE TEMP TRIGGER no BEFORE INSERT ON main.trials BEGIN SELECT RAISE(ABORT, 'no'); END"
    )


@pytest.mark.parametrize("hurt", [_deny, kit.fill_the_disk])
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
