"""A device that dies ends the run and blames no candidate; a bad candidate is blamed alone."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import clk_engine
import clk_planted
from clk_planted import how
from clk_pocl import a_device
from clk_tuning import DRIVER, USES, Synthetic, best_configs, gemv, with_roofs
from clkiln.cache.store import Store
from clkiln.errors import TuningError
from clkiln.kernels import SPECS
from clkiln.kernels.types import Config, Workload
from clkiln.kernels.uses import Use
from clkiln.runtime.device import DeviceInfo
from clkiln.tuner import session
from clkiln.tuner.levels import Level
from clkiln.tuner.process import Worker
from clkiln.tuner.session import TuningRun
from clkiln.tuner.trial import Outcome

LONG = pytest.mark.long
PLANTED = Use(Workload.of("planted", m=5, n=37), "decode", 1, 1)
ADD = Use(Workload.of("add", d=64, m=1), "decode", 2, 9)


@pytest.fixture(scope="module")
def info() -> DeviceInfo:
    return a_device().info


@pytest.fixture(autouse=True)
def planted() -> Iterator[None]:
    clk_planted.install()
    yield
    del SPECS["planted"]


def blamed(store: Store) -> set[str]:
    """The ways of the planted operation on file, each of which ended as it does anywhere."""
    ways = set()
    for row in store.trials(workload=str(PLANTED.workload)):
        way = str(dict(Config.parse(row.config).params)["HOW"])
        assert row.status == clk_planted.ENDS[way]
        ways.add(way)
    return ways


@pytest.mark.parametrize(
    "death",
    [pytest.param(d, marks=LONG if d in ("hang", "nonsense") else ()) for d in clk_planted.DEATHS],
)
def test_a_dead_device_stops_the_run_and_no_candidate_is_blamed(
    info: DeviceInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, death: str
) -> None:
    """In real processes: whatever way it dies, what is on file is what a sound device would say."""
    alive, count, limit = 3, tmp_path / "count", 5.0
    if death == "hang":
        monkeypatch.setattr("clkiln.tuner.alive.PATIENCE", 2.0)

    def run(command: tuple[str, ...]) -> None:
        monkeypatch.setattr(session, "Worker", partial(Worker, command=command, trial_limit=limit))
        TuningRun(store, info, [PLANTED, ADD], Level("fast", 1, None, 3)).run()

    with with_roofs(Store.open(tmp_path / "x.sqlite"), info.driver_key) as store:
        with pytest.raises(TuningError, match="stopped working, and no candidate is blamed") as e:
            run(clk_planted.dying(alive, count, death))
        assert "planted m=5 n=37" in str(e.value) or "add d=64" in str(e.value)
        before, kept = blamed(store), store.trials()
        assert len(kept) <= alive and any(row.status == "ok" for row in kept)
        # With the device back, the next run tries what this one did not keep.
        if death == "abort":
            run(clk_planted.WORKER)
            assert len(blamed(store)) >= 3 and blamed(store) > before
            assert len(best_configs(store, info.driver_key)) == 2


class Dying(Synthetic):
    """A device that works for ``life`` trials."""

    life = 10**9

    def fails(self, workload: Workload, config: Config) -> str | None:
        if len(self.trials) > self.life:
            return "crash"
        return super().fails(workload, config)


@pytest.mark.parametrize("life", [1, 5, 20])
def test_at_any_moment(store: Store, tune: Any, life: int) -> None:
    """Every trial before is kept as it was, and none after; a later run ends as if nothing was."""
    device = Dying(failing=0.3)
    device.life = life
    with pytest.raises(TuningError, match="no candidate is blamed"):
        tune(device)
    rows = store.trials()
    assert len(rows) == life
    for row in rows:
        workload, config = Workload.parse(row.workload), Config.parse(row.config)
        assert row.status == (Synthetic(failing=0.3).fails(workload, config) or "ok")
    tune(Synthetic(failing=0.3))
    assert set(best_configs(store, DRIVER)) == {str(use.workload) for use in USES}


def test_candidates_that_fail_are_blamed_however_many(store: Store, tune: Any) -> None:
    """As long as what worked still works, each costs its trial and a look at the device."""
    device = Synthetic(failing=0.95)
    result = tune(device)
    failed = sum(result.by_status.get(s, 0) for s in ("crash", "timeout", "wrong result",
                                                      "launch error"))  # fmt: skip
    assert failed > 8 and len(store.trials()) == result.trials
    assert len(device.checks) == failed, "one look at each"
    for workload, config in device.checks:
        assert config == SPECS[workload.op].safe(workload, device.info)


def test_a_safe_default_that_fails_is_blamed_where_others_work(store: Store, tune: Any) -> None:
    class Device(Synthetic):
        def fails(self, workload: Workload, config: Config) -> str | None:
            return "timeout" if workload == gemv(96) else None

    result = tune(Device())
    assert result.by_status["timeout"] >= 2
    assert str(gemv(96)) not in best_configs(store)
    assert len(best_configs(store)) == len(USES) - 1


def test_a_device_on_which_nothing_ever_worked_is_given_up(store: Store, tune: Any) -> None:
    device = Dying()
    device.life = 0
    with pytest.raises(TuningError):
        tune(device)
    assert len(device.trials) == 1 and len(device.checks) == 3
    assert len({workload.op for workload, _ in device.checks}) > 1
    assert not store.trials()


def test_a_program_made_again_at_the_end_is_no_reason_to_go_on(
    store: Store, tune: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An earlier run's choice whose program was cleared is built again; on a dead device not."""
    tune(Synthetic())
    store.drop_binaries([row.key for row in store.binaries()])
    device = Dying()
    device.life = 0
    with pytest.raises(TuningError, match="no candidate is blamed"):
        tune(device)


def test_the_command_line_says_what_happened_and_what_was_kept(
    cache_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import clk_cli

    info = a_device().info
    device = Dying(info=info)
    device.life = 5
    monkeypatch.setattr(session, "Worker", device.worker)
    call = clk_cli.caller(capsys, monkeypatch)
    cache = cache_dir / "x.sqlite"
    with_roofs(Store.open(cache), info.driver_key).close()
    model = clk_engine.small_model()
    result = call("tune", model, "--budget", "9s", "--device", info.selector, "--cache", cache)
    assert result.code == 1 and not result.out
    (error,) = result.lines("error: ")
    assert error.startswith("error: the device stopped working, and no candidate is blamed: ")
    assert error.endswith(
        f"; 5 trials of this run and what they found are kept in {cache}: clkiln tune goes on "
        "from there"
    )
    with Store.open(cache, write=False) as store:
        assert [row.status for row in store.trials()] == ["ok"] * 5
        (run,) = store.runs()
        assert run.ended and run.result["trials"] == 5


def test_an_outcome_that_says_nothing_of_the_device_costs_no_look(store: Store, tune: Any) -> None:
    device = Synthetic()
    device.fails = (  # type: ignore[method-assign]
        lambda workload, config: (
            None if config == SPECS[workload.op].safe(workload, device.info) else "compile error"
        )
    )
    tune(device)
    assert not device.checks
    assert isinstance(device.run(DRIVER, gemv(96), how("good")), Outcome)
