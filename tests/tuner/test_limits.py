"""The tuner's worker pretends what the tuner pretends."""

from __future__ import annotations

from pathlib import Path

import pytest

from clk_pocl import a_device
from clkiln.cache.store import Store
from clkiln.errors import TuningError
from clkiln.kernels import SPECS
from clkiln.kernels.types import Config, Workload
from clkiln.kernels.uses import Use
from clkiln.runtime.limits import read_limits
from clkiln.runtime.pretend import limited
from clkiln.tuner import roofs
from clkiln.tuner.levels import Level
from clkiln.tuner.process import Worker
from clkiln.tuner.session import TuningRun

NORM = Workload.parse("rmsnorm d=576 eps=1e-05 m=2")


def test_a_worker_keeps_to_the_limits_of_its_device() -> None:
    info = limited(a_device(), read_limits(["group-64"])).info
    with Worker(info.driver_key) as worker:
        large = worker.trial(NORM, Config.of("buffer", LX=128, V=4), None)
        assert (large.status, large.message) == ("constraint", "work-group 128 > 64 work-items")
        fitting = worker.trial(NORM, Config.of("buffer", LX=64, V=4), None)
        assert (fitting.status, fitting.message) == ("ok", "")
    with Worker(a_device().info.driver_key) as worker:
        assert worker.trial(NORM, Config.of("buffer", LX=128, V=4), None).status == "ok"


def test_a_worker_refuses_limits_that_there_are_not() -> None:
    key = f"{a_device().info.driver_key}+lokal=1"
    with Worker(key) as worker, pytest.raises(TuningError, match="there is no 'lokal'"):
        worker.trial(NORM, SPECS["rmsnorm"].safe(NORM, a_device().info), None)


def test_the_roof_is_read_from_what_one_allocation_holds(tmp_path: Path) -> None:
    [read] = [use for use in roofs.ROOF_USES if use.workload.op == "roof_read"]
    for profile, most in ((["alloc-128m"], 128), ([], read.workload.size("mb"))):
        info = limited(a_device(), read_limits(profile)).info
        assert roofs.fitted(read, info).workload.size("mb") == most
        spec, workload = SPECS["roof_read"], roofs.fitted(read, info).workload
        assert spec.check(workload, spec.safe(workload, info), info) is None


def test_a_run_under_limits_keeps_its_own_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clkiln.tuner.session.ROOF_USES", ())
    own = a_device().info
    info = limited(a_device(), read_limits(["group-64", "cl-1.1"])).info
    level, uses = Level("few", 1, None, 3), [Use(NORM, "prefill", 1, 1)]
    with Store.open(tmp_path / "x.sqlite") as store:
        TuningRun(store, info, uses, level).run()
        [best] = store.best_rows()
        assert best.driver == info.driver_key
        assert {trial.driver for trial in store.trials()} == {info.driver_key}
        TuningRun(store, own, uses, level).run()
        assert {row.driver for row in store.best_rows()} == {info.driver_key, own.driver_key}
        assert best in store.best_rows()
