"""Random rows as one machine learns them and another takes them over, and what a store shows."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st

import clk_cache as kit
from clkiln.cache import codec
from clkiln.cache.learnt import FactRow, Learnt, ProgramRow, merge
from clkiln.cache.rows import DriverRow, RunRow
from clkiln.cache.store import Store

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
