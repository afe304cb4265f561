"""``clkiln cache export`` and ``import``, as a user takes what was learnt to another machine."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import clk_engine
from clk_cache import write_rules
from clk_cli import Result
from clkiln.cache.exchange import read_export, write_export
from clkiln.cache.learnt import FactRow
from clkiln.cache.rows import BestRow, DriverRow, TrialRow
from clkiln.cache.store import Store
from clkiln.harness.rules import RULES, read_rules
from clkiln.kernels import SPECS
from clkiln.kernels.rules import Ban, Rules
from clkiln.kernels.types import Workload

Call = Callable[..., Result]
OLD = "an older driver"
SPEC = SPECS["gemv"]
WORKLOAD = Workload.parse(SPEC.example)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A file with choices of today's driver of the device and of an older one, and a program."""
    info = clk_engine.a_device().info
    path = tmp_path / "a.sqlite"
    config = str(SPEC.safe(WORKLOAD, info))
    with Store.open(path) as store:
        for driver in (info.driver_key, OLD):
            store.put_driver(DriverRow(driver, info.as_dict()))
            store.set_best(BestRow(str(WORKLOAD), driver, SPEC.digest(), config, 1e-3))
            store.add_trial(TrialRow(str(WORKLOAD), driver, SPEC.digest(), config, "ok", 1e-3))
        store.set_fact("verified x", {"a": "begun"}, driver=OLD)
        store.set_fact("roof.flops_per_s", 1e9, driver=OLD)
        store.put_binary("key", b"a program", label="x", driver=OLD)
    return path


@pytest.fixture
def export(call: Call, cache: Path) -> Path:
    path = cache.with_name("learnt.jsonl")
    assert call("cache", "export", path, "--cache", cache, "--binaries").code == 0
    return path


def test_there_and_back(call: Call, cache: Path, cache_dir: Path, device: str) -> None:
    path = cache.with_name("learnt.jsonl")
    result = call("cache", "export", path, "--cache", cache)
    assert (result.code, result.err) == (0, "")
    assert result.out == f"wrote 2 choices, 2 trials, 1 fact, 2 drivers to {path}\n"
    took = call("cache", "import", path, "--device", device)
    assert (took.code, took.err) == (0, "") and took.out.startswith("took 2 choices, 2 trials")
    [own] = cache_dir.glob("*.sqlite")
    with Store.open(own) as store, Store.open(cache) as source:
        assert store.best_rows() == source.best_rows()
        key = clk_engine.a_device().info.driver_key
        assert store.best(str(WORKLOAD), key, SPEC.digest()) is not None
        assert store.best_of_other_driver(str(WORKLOAD), SPEC.digest(), key) is not None
        assert store.facts() == {("roof.flops_per_s", OLD): 1e9} and store.binaries() == []
    again = call("cache", "import", path, path, "--device", device, "--json")
    assert again.code == 0 and not any(json.loads(again.out)["new"].values())
    second = cache.with_name("second.jsonl")
    assert call("cache", "export", second, "--device", device).code == 0
    assert second.read_bytes() == path.read_bytes()


def test_what_is_left_out_is_said(call: Call, cache: Path, tmp_path: Path) -> None:
    """A damaged row is not counted as written, and what was written can be taken."""
    with Store.open(cache) as store:
        store._connection.execute(
            "UPDATE drivers SET info = '{\"a\": 1e999}' WHERE driver = ?", (OLD,)
        )
    path = tmp_path / "learnt.jsonl"
    result = call("cache", "export", path, "--cache", cache)
    assert (result.code, result.out) == (0, f"wrote 1 choice, 1 trial, 1 driver to {path}\n")
    left = "1 choice, 1 trial, 1 fact, 1 driver"
    assert result.err.startswith(f"warning: left out, as no import would take it: {left};")
    assert call("cache", "import", path, "--cache", tmp_path / "b.sqlite").code == 0
    data = json.loads(call("cache", "export", path, "--cache", cache, "--json").out)
    assert data["rows"]["drivers"] == data["left_out"]["drivers"] == 1


def test_programs_are_taken_only_if_trusted(call: Call, export: Path, tmp_path: Path) -> None:
    there = tmp_path / "b.sqlite"
    result = call("cache", "import", export, "--cache", there)
    assert result.code == 0 and "1 compiled programs were left out" in result.err
    with Store.open(there) as store:
        assert store.binaries() == []
    result = call("cache", "import", export, "--cache", there, "--trust-binaries")
    assert (result.code, result.err) == (0, "") and result.out.startswith("took 1 program into")
    with Store.open(there) as store:
        assert store.get_binaries(["key"]) == {"key": b"a program"}


def test_another_devices_rows_are_refused(
    call: Call, export: Path, cache_dir: Path, device: str
) -> None:
    learnt = read_export(export)
    info = {"name": "Some GPU", "platform": "Some maker"}
    foreign = replace(learnt, drivers=tuple(replace(row, info=info) for row in learnt.drivers))
    write_export(export, foreign)
    result = call("cache", "import", export, "--device", device)
    assert result.code == 1 and "learnt on Some GPU" in result.err and "--cache" in result.err
    assert list(cache_dir.iterdir()) == []
    assert call("cache", "import", export, "--cache", cache_dir / "x.sqlite").code == 0


def test_what_makes_no_sense_is_refused(call: Call, export: Path, tmp_path: Path) -> None:
    learnt, there = read_export(export), tmp_path / "b.sqlite"
    first, last = learnt.best
    wrong = [
        replace(learnt, best=(replace(first, config="{}"), last)),
        replace(learnt, best=(replace(first, workload="\n"), last)),
        replace(learnt, trials=(replace(learnt.trials[0], config="x"),)),
        replace(learnt, facts=(FactRow("verified x", OLD, {}, first.updated),)),
        replace(learnt, facts=(FactRow("choice::d:gemv", OLD, "x", first.updated),)),
        replace(learnt, facts=(FactRow("roof.x", OLD, -1, first.updated),)),
    ]
    for each in wrong:
        write_export(export, each)
        result = call("cache", "import", export, "--cache", there)
        assert result.code == 1 and str(export) in result.err and "makes no sense" in result.err
    export.write_text("hello")
    result = call("cache", "import", export, "--cache", there)
    assert result.code == 1 and "is no export of clkiln" in result.err
    assert not there.exists()


BAN = Ban("wrong", since="2026-01-01T00:00:00Z")
BY_CHECK = Ban("wrong, too", "check", SPEC.digest(), "2026-01-02T00:00:00Z")


def _import(call: Call, export: Path, there: Path, here: Rules, theirs: Rules) -> Result:
    """Import ``theirs`` into a file with ``here``."""
    learnt = read_export(export)
    fact = FactRow(RULES, OLD, theirs.as_dict(), "2026-01-03T00:00:00Z")
    write_export(export, replace(learnt, facts=(fact,)))
    with Store.open(there) as store:
        write_rules(store, OLD, here)
    return call("cache", "import", export, "--cache", there)


def test_bans_and_pins_are_united(call: Call, export: Path, tmp_path: Path) -> None:
    here = Rules({("gemv", "image"): BY_CHECK}, {}, {"rmsnorm": "buffer"})
    theirs = Rules({("gemv", "image"): BAN, ("gemm", "image"): BAN}, {}, {"rmsnorm": "buffer"})
    for there, (one, other) in {"b": (here, theirs), "c": (theirs, here)}.items():
        path = tmp_path / f"{there}.sqlite"
        assert _import(call, export, path, one, other).code == 0
        with Store.open(path) as store:
            found = read_rules(store, OLD)
        assert found.variants == theirs.variants and found.pins == {"rmsnorm": "buffer"}


@pytest.mark.parametrize(
    ("here", "theirs", "expected"),
    [
        (Rules(pins={"gemv": "image"}), Rules(pins={"gemv": "buffer"}), "is pinned to"),
        (Rules(pins={"gemv": "image"}), Rules({("gemv", "image"): BAN}), "both pinned and banned"),
        (Rules({("gemv", "image"): BAN}), Rules({("gemv", "buffer"): BAN}), "leave no variant"),
        (Rules(pins={"gemv": "image"}), Rules(pins={"gemm": "buffer"}), "no place for weights"),
    ],
)
@pytest.mark.parametrize("turned", [False, True])
def test_rules_that_contradict_are_refused(
    call: Call,
    export: Path,
    tmp_path: Path,
    here: Rules,
    theirs: Rules,
    expected: str,
    turned: bool,
) -> None:
    if turned:
        here, theirs = theirs, here
    there = tmp_path / "b.sqlite"
    result = _import(call, export, there, here, theirs)
    assert result.code == 1 and expected in result.err and "nothing was imported" in result.err
    with Store.open(there) as store:
        assert read_rules(store, OLD) == here and store.best_rows() == []
    assert call("cache", "import", export, "--cache", there, "--without-rules").code == 0
    with Store.open(there) as store:
        assert read_rules(store, OLD) == here and len(store.best_rows()) == 2
