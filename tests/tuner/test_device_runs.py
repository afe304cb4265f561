"""Tuning runs on a real device: candidates that kill, Ctrl-C, kill -9, a file that stays sound."""

from __future__ import annotations

import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

import clk_planted
from clk_cache import start_python
from clk_planted import how
from clk_pocl import a_device
from clk_tuning import missing_binaries, split_groups, with_roofs
from clkiln.cache.store import Store
from clkiln.kernels import SPECS
from clkiln.kernels.types import Config, Workload
from clkiln.kernels.uses import Use
from clkiln.kernels.variants import VariantRequest
from clkiln.runtime.device import DeviceInfo
from clkiln.tuner import session
from clkiln.tuner.levels import Level
from clkiln.tuner.process import Worker
from clkiln.tuner.record import undone
from clkiln.tuner.session import TuningRun

FEW = Level("fast", 1, None, 3)
USES = (
    Use(Workload.of("gemv", bias="no", fuse="none", k=32, n=48, w="q8_0"), "decode", 1, 9, "w"),
    Use(Workload.of("embedding", k=32, m=4, n=48, w="q8_0"), "decode", 1, 1, "w"),
    Use(Workload.of("add", d=64, m=1), "decode", 2, 9),
)


@pytest.fixture(scope="module")
def info() -> DeviceInfo:
    return a_device().info


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> Iterator[clk_planted.PlantedSpec]:
    """The planted operation, here and in the workers of tuning runs."""
    worker = partial(Worker, command=clk_planted.WORKER, trial_limit=5)
    monkeypatch.setattr(session, "Worker", worker)
    yield clk_planted.install()
    del SPECS["planted"]


def open_store(path: Path, info: DeviceInfo) -> Store:
    return with_roofs(Store.open(path), info.driver_key)


def test_no_candidate_stops_the_search(planted: object, info: DeviceInfo, tmp_path: Path) -> None:
    """Compilers that abort, kernels that crash, hang or lie: each costs its trial, none wins."""
    workload = Workload.of("planted", m=5, n=37)
    with open_store(tmp_path / "x.sqlite", info) as store:
        result = TuningRun(
            store, info, [Use(workload, "decode", 1, 1)], Level("fast", 1, None, None)
        ).run()
        ends = {
            str(dict(Config.parse(row.config).params)["HOW"]): row.status
            for row in store.trials(workload=str(workload))
        }
        # What cannot fit is not even tried: every build of ``greedy`` would end its worker.
        assert ends == {way: end for way, end in clk_planted.ENDS.items() if way != "greedy"}
        (best,) = store.best_rows()
        assert (best.workload, best.config) == (str(workload), str(how("good")))
        assert best.default_time is not None and best.time < best.default_time
        assert missing_binaries(store, info.driver_key) == []
        assert result.restarts == 3
        for row in store.trials():
            assert bool(row.message) == (row.status != "ok")
            assert row.status == "ok" or row.time is None


def test_a_run_keeps_its_budget(info: DeviceInfo, tmp_path: Path) -> None:
    """Within a trial and a worker's start, which take seconds on a busy machine."""
    with open_store(tmp_path / "x.sqlite", info) as store:
        start = time.monotonic()
        result = TuningRun(store, info, USES, Level("wide", 3, None, None), seconds=5.0).run()
        assert time.monotonic() - start < 5.0 + 20.0
        assert result.trials == len(store.trials()) >= len(USES)
        assert {row.workload for row in store.best_rows()} == {str(u.workload) for u in USES}
        assert missing_binaries(store, info.driver_key) == []
        assert split_groups(store, info.driver_key, USES) == []


def test_roofs_are_measured_once(
    info: DeviceInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from clkiln.tuner import roofs

    read, flops = Workload.of("roof_read", mb=4), Workload.of("roof_fma", mops=20)
    monkeypatch.setattr(roofs, "READ", read)
    uses = (Use(read, "decode", 0, 0), Use(flops, "decode", 0, 0))
    monkeypatch.setattr(session, "ROOF_USES", uses)
    monkeypatch.setattr(session, "ROOF_TRIALS", 2)
    with Store.open(tmp_path / "x.sqlite") as store:
        run = TuningRun(store, info, [], FEW)
        run.run()
        roof = roofs.read_roof(store, info.driver_key)
        assert roof == run.roof
        assert roof.bytes_per_s is not None and 1e8 < roof.bytes_per_s < 1e13
        assert roof.flops_per_s is not None and 1e8 < roof.flops_per_s < 1e15
        assert not store.best_rows()
        count = len(store.trials())
        again = TuningRun(store, info, [], FEW)
        again.run()
        assert len(store.trials()) == count and again.roof == roof


# --- processes that are ended ---------------------------------------------------------------------

SCRIPT = """
import sys
sys.path[:0] = [sys.argv[1]]
from pathlib import Path
from clk_pocl import a_device
from clk_tuning import Synthetic, with_roofs
from clkiln.cache.store import Store
from clkiln.tuner import session
from clkiln.tuner.levels import Level
import {module} as module

info = a_device().info
if sys.argv[3] == "synthetic":
    session.Worker = Synthetic(failing=0.3, seconds=0, info=info).worker
with Store.open(Path(sys.argv[2])) as store:
    with_roofs(store, info.driver_key)
    print("ready", flush=True)
    try:
        session.TuningRun(store, info, module.USES, Level("fast", 1, None, int(sys.argv[4]))).run()
    except KeyboardInterrupt:
        print("interrupted", flush=True)
        raise SystemExit(130)
"""


def start_run(path: Path, kind: str, trials: int) -> subprocess.Popen[str]:
    """A process that tunes: this module's uses, or the synthetic device's, which is quick."""
    module = "clk_tuning" if kind == "synthetic" else Path(__file__).stem
    script = SCRIPT.format(module=module)
    if kind != "synthetic":
        script = f"import sys; sys.path[:0] = [{str(Path(__file__).parent)!r}]\n{script}"
    tuner = start_python(script, Path(clk_planted.__file__).parent, path, kind, trials)
    assert tuner.stdout is not None
    line = tuner.stdout.readline()
    assert line == "ready\n", tuner.communicate()
    return tuner


def wait_for(path: Path, condition: Callable[[int], bool]) -> int:
    """Wait until the number of trials on file fulfils ``condition``."""
    for _ in range(600):
        count = count_trials(path)
        if condition(count):
            return count
        time.sleep(0.05)
    raise AssertionError("no progress")


def count_trials(path: Path) -> int:
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)
    try:
        return int(connection.execute("SELECT count(*) FROM trials").fetchone()[0])
    finally:
        connection.close()


def check_file(path: Path) -> None:
    """As SQLite sees it after its recovery, and every choice backed by a trial."""
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA quick_check").fetchall() == [("ok",)]
    connection.close()
    with Store.open(path) as store:
        sound = {(row.workload, row.config) for row in store.trials(status="ok")}
        assert {(row.workload, row.config) for row in store.best_rows()} <= sound


def test_kills_at_any_moment_lose_at_most_a_trial(tmp_path: Path) -> None:
    """Many kills of a process that does little but write."""
    import clk_tuning

    path, rng = tmp_path / "x.sqlite", random.Random(0)
    before = 0
    for _ in range(5):
        tuner = start_run(path, "synthetic", 25)
        wait_for(path, lambda count, before=before: count > before)  # type: ignore[misc]
        time.sleep(rng.random() * 0.1)
        tuner.kill()
        tuner.communicate()
        check_file(path)
        assert count_trials(path) > before
        before = count_trials(path)
    driver = a_device().info.driver_key
    tuner = start_run(path, "synthetic", 25)
    _, errors = tuner.communicate(timeout=120)
    assert tuner.returncode == 0, errors
    check_file(path)
    with Store.open(path) as store:
        assert missing_binaries(store, driver) == []
        assert split_groups(store, driver, clk_tuning.USES) == []
        tries = Counter((row.workload, row.config) for row in store.trials() if row.status != "ok")
        assert max(tries.values()) == 1


def test_a_real_run_goes_on_after_kill_and_ctrl_c(info: DeviceInfo, tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    tuner = start_run(path, "device", 3)
    first = wait_for(path, lambda count: count >= 2)
    tuner.kill()
    tuner.communicate()
    check_file(path)
    tuner = start_run(path, "device", 3)
    wait_for(path, lambda count: count > first)
    tuner.send_signal(signal.SIGINT)
    output, errors = tuner.communicate(timeout=60)
    assert (tuner.returncode, output) == (130, "interrupted\n"), errors
    check_file(path)
    with Store.open(path) as store:
        tried = len(store.trials())
        assert undone(store, info.driver_key, USES, FEW, VariantRequest()) == list(USES)
        TuningRun(store, info, USES, FEW).run()
        assert undone(store, info.driver_key, USES, FEW, VariantRequest()) == []
        assert len(store.trials()) > tried
        assert missing_binaries(store, info.driver_key) == []
        assert split_groups(store, info.driver_key, USES) == []
        assert all(row.time > 0 for row in store.best_rows())
        searched = {(row.workload, row.config) for row in store.trials()}
        assert all(count >= 3 for count in Counter(workload for workload, _ in searched).values())


if sys.platform == "win32":
    pytest.skip("signals as on POSIX", allow_module_level=True)
