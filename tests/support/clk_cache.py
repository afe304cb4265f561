"""What the tests of the cache share: random rows, a filled file, and its expected content."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import textwrap
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st

from clkiln.cache.connection import connect_memory
from clkiln.cache.rows import STATUSES, BestRow, DriverRow, RunRow, TrialRow
from clkiln.cache.store import Store
from clkiln.harness.rules import change_rules
from clkiln.kernels.rules import Rules

#: An example may open a store, which takes milliseconds; the same examples every time.
quick = settings(max_examples=60, deadline=None, derandomize=True)

#: Every text that UTF-8 can hold; NUL and control characters included.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
names = st.text("abc|=,0123", min_size=1, max_size=12)
seconds = st.floats(min_value=0, allow_nan=False)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)
json_objects = st.dictionaries(texts, json_values, max_size=5)

drivers = st.builds(DriverRow, driver=names, info=json_objects)
trials = st.builds(
    TrialRow,
    workload=names,
    driver=names,
    digest=names,
    config=texts,
    status=st.sampled_from(STATUSES),
    time=st.none() | seconds,
    spread=st.none() | seconds,
    repeats=st.integers(0, 2**63 - 1),
    compile_time=st.none() | seconds,
    error=st.none() | seconds,
    message=texts,
    layout=st.none() | texts,
    run=st.none() | st.integers(0, 2**63 - 1),
)
bests = st.builds(
    BestRow,
    workload=names,
    driver=names,
    digest=names,
    config=texts,
    time=seconds,
    default_time=st.none() | seconds,
    layout=st.none() | texts,
    complete=st.booleans(),
)
runs = st.builds(
    RunRow, model=texts, level=texts, driver=names, budget=st.none() | seconds, result=json_objects
)

BINARIES = {f"key {i}": bytes((i * 7 + j) % 251 for j in range(900 * i)) for i in range(1, 12)}
FACTS = {"roof": {"bandwidth": 2.5e10, "tried": [1, 2, 3]}, "slowest": None, "quick": 12}


class Warnings(list[str]):
    """A place for warnings: hand its ``append`` to the store."""


def memory_store(warnings: Warnings | None = None) -> Store:
    """A store without a file in which, unlike in ``open_or_memory``'s, every fault raises."""
    return Store(connect_memory(), None, (Warnings() if warnings is None else warnings).append)


def write_rules(store: Store, driver: str, rules: Rules) -> None:
    """Keep ``rules`` whatever was there."""
    change_rules(store, driver, lambda before: rules)


def some_trial(**changes: Any) -> TrialRow:
    return replace(TrialRow("gemv|k=1", "driver", "digest", "{}", "ok", 1e-3), **changes)


def some_best(**changes: Any) -> BestRow:
    return replace(BestRow("gemv|k=1", "driver", "digest", "{}", 1e-3, 2e-3), **changes)


def fill(path: Path) -> None:
    """A sound file with several pages in every table that a start reads."""
    with Store.open(path) as store:
        store.put_driver(DriverRow("driver", {"name": "a device", "units": 2}))
        run = store.start_run(RunRow("model", "fast", "driver"))
        for i in range(60):
            store.add_trial(some_trial(config=f"config {i}" * 10, workload=f"w{i % 6}", run=run))
        for i in range(30):
            store.set_best(some_best(workload=f"w{i}", config=f"config {i}" * 10))
        for key, payload in BINARIES.items():
            store.put_binary(key, payload, label=f"label of {key}", driver="driver")
        for name, value in FACTS.items():
            store.set_fact(name, value)
        store.finish_run(run, 1.5, {"gain": 2.0})


@cache
def filled() -> bytes:
    """The bytes of a file of :func:`fill`, which costs a flush to the disk for every row."""
    with tempfile.TemporaryDirectory() as folder:
        fill(Path(folder) / "x.sqlite")
        return (Path(folder) / "x.sqlite").read_bytes()


def everything(store: Store) -> dict[str, Any]:
    """What every reading method gives for a file of :func:`fill`."""
    return {
        "best": [store.best(f"w{i}", "driver", "digest") for i in range(30)],
        "other": store.best_of_other_driver("w1", "digest", "another driver"),
        "binaries": store.get_binaries(BINARIES),
        "facts": {name: store.fact(name) for name in FACTS},
        "trials": store.trials(status="ok"),
        "reports": [store.drivers(), store.best_rows(), store.runs(), store.binaries()],
        "all facts": store.facts(),
        "info": store.info(),
    }


def start_python(script: str, *args: object) -> subprocess.Popen[str]:
    """A new process that runs ``script`` with ``args`` in ``sys.argv``; its output is captured."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, args)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def fill_the_disk(store: Store) -> None:
    """No page more fits into the file."""
    (pages,) = store._connection.execute("PRAGMA page_count").fetchone()
    store._connection.execute(f"PRAGMA max_page_count = {pages}")


def write_protect(store: Store) -> None:
    store._connection.execute("PRAGMA query_only = ON")
