"""What is read out of a cache file, and what becomes of a file that lacks or garbles things."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clk_report_caches import DRIVER, INFO, OLD_DRIVER, RESULT, WORKLOADS, search, tuned
from clkiln.cache.rows import STATUSES, BestRow, DriverRow, RunRow, TrialRow
from clkiln.cache.store import Store
from clkiln.errors import CacheError
from clkiln.kernels import SPECS
from clkiln.reports.data import Contents, build, collect
from clkiln.reports.figures import figures
from clkiln.reports.model import Report

TRIALS = 9


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    return collect(tuned(tmp_path_factory.mktemp("report") / "device.db", trials=TRIALS))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "device.db"


def test_every_workload_is_reported_slowest_first(report: Report) -> None:
    kernels = report.drivers[0].kernels
    assert [k.time for k in kernels] == sorted(WORKLOADS.values(), reverse=True)
    assert {k.workload for k in kernels} == set(map(str, WORKLOADS))


def test_each_kernel_against_default_and_roof(report: Report) -> None:
    driver = report.drivers[0]
    for kernel in driver.kernels:
        assert kernel.time and kernel.default_time and kernel.roof and kernel.bytes
        assert kernel.speedup == pytest.approx(kernel.default_time / kernel.time)
        assert kernel.roof.share == pytest.approx(kernel.roof.seconds / kernel.time)
        assert kernel.roof.default_share == pytest.approx(kernel.roof.share / kernel.speedup)
        assert kernel.bytes_per_s == pytest.approx(kernel.bytes / kernel.time)
        variant = SPECS[kernel.op].variant(kernel.variant or "")
        assert kernel.kind == variant.kind
        assert kernel.complete and not kernel.outdated


def test_trials_and_time_add_up(report: Report, path: Path) -> None:
    totals = report.drivers[0].totals
    assert totals.trials == TRIALS * len(WORKLOADS) == sum(totals.outcomes.values())
    with Store.open(tuned(path, trials=TRIALS)) as store:
        rows = store.trials()
    for status in STATUSES:
        assert totals.outcomes.get(status, 0) == sum(row.status == status for row in rows)
    assert list(totals.outcomes) == [status for status in STATUSES if status in totals.outcomes]
    assert totals.compile_time == pytest.approx(sum(row.compile_time or 0 for row in rows))
    assert totals.measure_time == pytest.approx(sum((row.time or 0) * row.repeats for row in rows))
    assert totals.tune_time == 171.5
    assert sum(totals.kinds.values()) == len(WORKLOADS)


def test_progress_goes_down_from_the_default_to_the_last_trial(report: Report) -> None:
    for kernel in report.drivers[0].kernels:
        trials = [step.trial for step in kernel.progress]
        times = [step.time for step in kernel.progress]
        spent = [step.spent for step in kernel.progress]
        assert (trials[0], spent[0], times[0]) == (0, 0.0, kernel.default_time)
        assert trials == sorted(set(trials)) and trials[-1] == TRIALS
        assert times == sorted(times, reverse=True)
        assert spent == sorted(spent)
        assert spent[-1] == pytest.approx(kernel.compile_time + kernel.measure_time)


def test_file_runs_and_speeds(report: Report) -> None:
    driver = report.drivers[0]
    assert report.size == Path(report.path).stat().st_size
    assert (report.binaries, report.binary_bytes) == (2, 18000) == (driver.binaries, 18000)
    assert (report.device, driver.platform) == (INFO["name"], INFO["platform"])
    (run,) = driver.runs
    assert (run.model, run.level, run.budget, run.seconds) == ("smollm2-135m", "normal", 300, 171.5)
    assert {name: getattr(run, name) for name in RESULT} == RESULT
    (speed,) = driver.speeds
    assert (speed.model, speed.decode_tok_s, speed.tuned) == ("smollm2-135m", 61.3, True)
    assert report.hint is None and driver.notes == () and report.warnings == ()


def test_the_kernel_filter_takes_an_operation_or_a_part_of_a_workload(path: Path) -> None:
    tuned(path, trials=2)
    ops = {kernel.op for kernel in collect(path, kernel="gemm").drivers[0].kernels}
    assert ops == {"gemm"}
    found = collect(path, kernel="n=49152").drivers[0].kernels
    assert {kernel.workload for kernel in found} == {
        str(workload) for workload in WORKLOADS if "n=49152" in str(workload)
    }
    nothing = collect(path, kernel="conv")
    assert nothing.drivers[0].kernels == ()
    assert nothing.hint and "'conv'" in nothing.hint and "gemv" in nothing.hint


def test_an_exact_operation_is_not_mixed_with_longer_names(path: Path) -> None:
    with Store.open(path) as store:
        for op in ("add", "add_norm"):
            search(store, f"{op} n=8", 1e-6, rng=random.Random(0), trials=2)
    assert [k.op for k in collect(path, kernel="add").drivers[0].kernels] == ["add"]


def test_an_empty_file_says_what_to_do(path: Path) -> None:
    Store.open(path).close()
    report = collect(path)
    assert report.drivers == ()
    assert report.hint and "clkiln tune" in report.hint


def test_a_device_that_was_used_untuned(path: Path) -> None:
    with Store.open(path) as store:
        store.put_driver(DriverRow(DRIVER, INFO))
        store.put_binary("k", b"x" * 7, label="gemv", driver=DRIVER)
    report = collect(path)
    assert report.hint and "clkiln tune" in report.hint
    assert (report.device, report.drivers[0].binary_bytes) == (INFO["name"], 7)


def test_no_file_and_a_foreign_file_are_errors_that_name_the_path(path: Path) -> None:
    with pytest.raises(CacheError, match=r"device\.db"):
        collect(path)
    with pytest.raises(CacheError, match=r"no cache file"):
        collect(path.parent)
    path.write_bytes(b"GGUF" * 4096)
    with pytest.raises(CacheError, match=r"device\.db"):
        collect(path)


def test_reading_leaves_the_file_as_it_is(path: Path) -> None:
    tuned(path, trials=2)
    before = path.read_bytes(), path.stat().st_mtime_ns, set(path.parent.iterdir())
    path.chmod(0o400)
    collect(path)
    assert (path.read_bytes(), path.stat().st_mtime_ns, set(path.parent.iterdir())) == before


def test_the_driver_used_last_is_the_current_one() -> None:
    def best(driver: str, updated: str) -> BestRow:
        workload = str(next(iter(WORKLOADS)))
        return BestRow(workload, driver, "0", "{}", 1e-5, updated=updated)

    drivers = (DriverRow(OLD_DRIVER, {}, "2026-01-01"), DriverRow(DRIVER, {}, "2026-02-01"))
    rows = (best(OLD_DRIVER, "2026-01-02"), best(DRIVER, "2026-02-02"))
    report = build(_contents(drivers=drivers, best=rows))
    assert [(d.driver, d.current) for d in report.drivers] == [(DRIVER, True), (OLD_DRIVER, False)]
    # Somebody went back to the old driver and tuned there.
    report = build(_contents(drivers=drivers, best=(*rows, best(OLD_DRIVER, "2026-03-01"))))
    assert [driver.driver for driver in report.drivers] == [OLD_DRIVER, DRIVER]
    # In one and the same second the driver that was seen later counts.
    same = tuple(DriverRow(row.driver, {}, "2026-01-01") for row in drivers)
    assert [driver.driver for driver in build(_contents(drivers=same)).drivers] == [
        DRIVER,
        OLD_DRIVER,
    ]


def test_a_limited_device_is_current_beside_the_whole_one() -> None:
    """It comes last, however late it was used, and makes no earlier driver of the device."""
    limited = f"{DRIVER}+local_memory=32768"
    keys = (OLD_DRIVER, DRIVER, f"{OLD_DRIVER}+local_memory=32768", limited)
    rows = tuple(DriverRow(key, {}, f"2026-0{month}-01") for month, key in enumerate(keys, 1))
    found = build(_contents(drivers=rows)).drivers
    assert [(driver.driver, driver.current, driver.limits) for driver in found] == [
        (DRIVER, True, ""),
        (OLD_DRIVER, False, ""),
        (limited, True, "local_memory=32768"),
        (keys[2], False, "local_memory=32768"),
    ]


def test_results_of_another_kernel_version_are_marked_and_come_last(path: Path) -> None:
    workload = str(next(iter(WORKLOADS)))
    with Store.open(path) as store:
        rng = random.Random(0)
        search(store, workload, 9e-5, rng=rng, trials=3, digest="0123456789abcdef")
        search(store, workload, 3e-5, rng=rng, trials=3)
    driver = collect(path).drivers[0]
    assert [(k.outdated, k.time) for k in driver.kernels] == [(False, 3e-5), (True, 9e-5)]
    assert driver.totals.speedup == pytest.approx(driver.kernels[0].speedup)
    assert any("another version" in note for note in driver.notes)


def test_a_kernel_without_a_winner_is_listed(path: Path) -> None:
    with Store.open(path) as store:
        for status in ("crash", "timeout", "crash"):
            store.add_trial(TrialRow("argmax n=9", DRIVER, "d", "{}", status, message="boom"))
    (kernel,) = collect(path).drivers[0].kernels
    assert (kernel.config, kernel.time, kernel.progress) == (None, None, ())
    assert kernel.outcomes == {"crash": 2, "timeout": 1}


def test_only_trials_that_succeeded_are_progress() -> None:
    """A time can be there although the result was wrong: fast nonsense is no improvement."""
    rows = [("ok", 3e-3), ("wrong result", 1e-9), ("timeout", 1e-9), ("ok", 2e-3), ("ok", 5e-3)]
    trials = tuple(TrialRow("add n=8", DRIVER, "d", "{}", status, time) for status, time in rows)
    (kernel,) = build(_contents(trials=trials)).drivers[0].kernels
    assert [(step.trial, step.time) for step in kernel.progress] == [
        (1, 3e-3),
        (4, 2e-3),
        (5, 2e-3),
    ]


def test_a_roof_that_was_not_measured_is_said(path: Path) -> None:
    tuned(path, trials=2, roof=False)
    driver = collect(path).drivers[0]
    assert all(kernel.roof is None and kernel.bytes_per_s for kernel in driver.kernels)
    (note,) = driver.notes
    assert "memory bandwidth and peak arithmetic" in note


def test_workloads_and_configurations_of_another_clkiln(path: Path) -> None:
    with Store.open(path) as store:
        for workload in ("conv2d k=3", "gemv", "no workload at all"):
            store.set_best(BestRow(workload, DRIVER, "d", "not json", 1e-3, 2e-3))
    driver = collect(path).drivers[0]
    assert {k.workload for k in driver.kernels} == {"conv2d k=3", "gemv", "no workload at all"}
    for kernel in driver.kernels:
        assert (kernel.roof, kernel.flops, kernel.kind, kernel.variant) == (None,) * 4
        assert kernel.speedup == 2
    assert any("does not know" in note for note in driver.notes)


# -- whatever a file may say -------------------------------------------------------------------

TEXTS = st.text(max_size=12) | st.sampled_from(
    [*map(str, WORKLOADS), "gemv", "</script>", "\x1b[2J"]
)
NUMBERS = st.none() | st.floats() | st.integers()
JSON = st.recursive(
    NUMBERS | st.booleans() | TEXTS,
    lambda inner: st.dictionaries(TEXTS, inner) | st.lists(inner),
)
FACTS = st.dictionaries(
    st.sampled_from(["roof.read_bytes_per_s", "roof.flops_per_s", "speed:m", "speed:", "x"]),
    JSON | st.dictionaries(st.sampled_from(["decode_tok_s", "tuned", "measured", "model"]), JSON),
)
DRIVERS = st.sampled_from([DRIVER, OLD_DRIVER, ""])
FLOATS = st.none() | st.floats()
TRIAL_ROWS = st.builds(
    TrialRow,
    workload=TEXTS,
    driver=DRIVERS,
    digest=TEXTS,
    config=TEXTS,
    status=st.sampled_from(STATUSES) | TEXTS,
    time=FLOATS,
    spread=FLOATS,
    repeats=st.integers(-(2**63), 2**63 - 1),
    compile_time=FLOATS,
    created=TEXTS,
)
BEST_ROWS = st.builds(
    BestRow,
    workload=TEXTS,
    driver=DRIVERS,
    digest=TEXTS,
    config=TEXTS,
    time=st.floats(),
    default_time=FLOATS,
    updated=TEXTS,
)
RUN_ROWS = st.builds(
    RunRow,
    model=TEXTS,
    level=TEXTS,
    driver=DRIVERS,
    seconds=FLOATS,
    budget=FLOATS,
    result=st.dictionaries(st.sampled_from([*RESULT, "x"]), JSON),
)
DRIVER_ROWS = st.builds(
    DriverRow, driver=DRIVERS, info=st.dictionaries(st.sampled_from([*INFO, "x"]), JSON)
)


def _contents(**rows) -> Contents:
    empty = dict.fromkeys(("drivers", "trials", "best", "runs", "binaries"), ())
    defaults = {"path": "x.db", "size": 0, "schema": 1, "facts": {}}
    return Contents(**{**empty, **defaults, **rows})


def any_contents() -> st.SearchStrategy[Contents]:
    return st.builds(
        _contents,
        drivers=st.lists(DRIVER_ROWS, max_size=3, unique_by=lambda row: row.driver).map(tuple),
        trials=st.lists(TRIAL_ROWS, max_size=8).map(tuple),
        best=st.lists(BEST_ROWS, max_size=4).map(tuple),
        runs=st.lists(RUN_ROWS, max_size=3).map(tuple),
        facts=st.dictionaries(DRIVERS, FACTS, max_size=3),
    )


@given(any_contents(), st.none() | TEXTS)
@settings(max_examples=40, deadline=None)
def test_whatever_a_file_says_the_report_is_sound(contents: Contents, name: str | None) -> None:
    report = build(contents, name)
    text = json.dumps(report.as_json(), allow_nan=False)
    assert json.loads(text) == report.as_json()
    assert sum(driver.current for driver in report.drivers) == bool(report.drivers)
    for driver in report.drivers:
        assert driver.totals.trials == sum(kernel.trials for kernel in driver.kernels)
        for kernel in driver.kernels:
            assert kernel.time is None or 0 < kernel.time < math.inf
            assert kernel.roof is None or kernel.roof.seconds >= 0
        json.dumps(figures(driver), allow_nan=False)
    if name is None:
        seen = {k.workload for d in report.drivers for k in d.kernels}
        assert seen == {row.workload for row in (*contents.trials, *contents.best)}
