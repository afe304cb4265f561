"""Tuning runs over a synthetic device: what is kept, what is tried again, and what never is."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from clk_tuning import (
    DRIVER,
    INFO,
    USES,
    Synthetic,
    best_configs,
    best_times,
    gemv,
    missing_binaries,
    request_seconds,
    safe_of,
    split_groups,
)
from clkiln.cache.store import Store
from clkiln.kernels import SPECS
from clkiln.kernels.types import Config, Workload
from clkiln.kernels.uses import Use
from clkiln.tuner import session
from clkiln.tuner.levels import LEVELS, Level
from clkiln.tuner.session import Progress


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("failing", [0.0, 0.4])
def test_a_run_finds_keeps_and_completes(
    store: Store, tune: Any, seed: int, failing: float
) -> None:
    """Every workload chosen, no worse than the default, its program in the file, layouts shared."""
    device = Synthetic(failing=failing, seed=seed)
    result = tune(device, seed=seed)
    rows = store.best_rows(driver=DRIVER)
    assert {row.workload for row in rows} == {str(use.workload) for use in USES}
    assert missing_binaries(store, DRIVER) == []
    assert split_groups(store, DRIVER, USES) == []
    for row in rows:
        workload, config = Workload.parse(row.workload), Config.parse(row.config)
        assert device.fails(workload, config) is None
        assert row.time == device.true_time(workload, config)
        assert row.layout == SPECS[workload.op].layout(workload, config)
    defaults = {str(use.workload): device.true_time(use.workload, safe_of(use)) for use in USES}
    assert {row.workload: row.default_time for row in rows} == defaults
    assert request_seconds(best_times(store)) < 0.9 * request_seconds(defaults)
    kept = store.trials(driver=DRIVER)
    assert len(kept) == len(device.trials) == result.trials
    assert Counter(row.status for row in kept) == result.by_status
    assert [(row.workload, row.config) for row in kept] == [
        (str(workload), str(config)) for workload, config in device.trials
    ]


@pytest.mark.parametrize("seed", range(2))
def test_the_choice_of_a_group_is_the_best_layout_of_all(
    store: Store, tune: Any, seed: int
) -> None:
    """Worked out again from the trials on file."""
    tune(Synthetic(failing=0.2, seed=seed), seed=seed)
    for group in ("tied", "up"):
        uses = [use for use in USES if use.group == group]
        best: dict[str | None, dict[str, float]] = {}
        for row in store.trials(driver=DRIVER, status="ok"):
            for use in uses:
                if row.workload == str(use.workload):
                    assert row.time is not None
                    of_layout = best.setdefault(row.layout, {})
                    known = of_layout.get(row.workload, row.time)
                    of_layout[row.workload] = min(known, row.time)
        complete = [times for times in best.values() if len(times) == len(uses)]
        chosen = {k: v for k, v in best_times(store).items() if k in complete[0]}
        assert chosen in complete
        assert request_seconds(chosen, uses) == min(request_seconds(t, uses) for t in complete)


def test_the_binaries_on_file_are_those_chosen(store: Store, tune: Any) -> None:
    """Programs that led for a while are dropped again, and nobody else's are."""
    store.put_binary("another", b"program", label="of another model", driver=DRIVER)
    tune(Synthetic())
    chosen = {f"{row.workload} {row.config}" for row in store.best_rows()}
    labels = {row.label for row in store.binaries()}
    # Two workloads may share a program, which has the label of one of them.
    assert labels <= chosen | {"of another model"} and "of another model" in labels


def test_progress_is_told_after_every_trial(store: Store, tune: Any) -> None:
    seen: list[Progress] = []
    device = Synthetic(failing=0.2)
    tune(device, seconds=60.0, progress=seen.append)
    assert [progress.trials for progress in seen] == list(range(1, len(device.trials) + 1))
    assert all(p.kernels == len(USES) and 0 <= p.kernels_done <= p.kernels for p in seen)
    assert seen[-1].kernels_done == len(USES) and seen[-1].speedup > 1
    left = [progress.seconds_left or 0.0 for progress in seen]
    assert left == sorted(left, reverse=True) and left[0] > left[-1] >= 0
    assert {p.doing for p in seen} == {str(use.workload) for use in USES}


def test_the_costliest_workloads_get_most_trials(store: Store, tune: Any) -> None:
    heavy, light = gemv(96), gemv(192)
    device = Synthetic()
    tune(device, [Use(heavy, "decode", 100, 100), Use(light, "decode", 1, 1)], seconds=30.0,
         level=Level("wide", 3, None, None))  # fmt: skip
    counts = Counter(workload for workload, _ in device.trials)
    assert counts[heavy] > 3 * counts[light] > 0


@pytest.mark.parametrize("budget", [5.0, 50.0])
@pytest.mark.parametrize("level", [LEVELS["exhaustive"], Level("fast", 1, 45.0, None)])
def test_a_budget_is_kept_within_one_trial(
    store: Store, tune: Any, budget: float, level: Level
) -> None:
    device = Synthetic(seconds=0.5)
    start = device.now
    result = tune(device, level=level, seconds=budget)
    limit = min(budget, level.seconds or budget)
    assert device.now - start <= limit + 0.5
    assert device.now - start > 0.7 * limit
    assert result.seconds == pytest.approx(device.now - start)
    assert missing_binaries(store, DRIVER) == []


def test_a_space_that_is_done_ends_the_run(store: Store, tune: Any) -> None:
    """Each feasible configuration once, plus the leaders' and the default's further rounds."""
    use = USES[-1]
    device = Synthetic(failing=0.3)
    tune(device, [use], level=LEVELS["exhaustive"])
    feasible = SPECS["add"].feasible(use.workload, INFO)
    counts = Counter(config for _, config in device.trials)
    assert set(counts) == set(feasible)
    again = {config for config, count in counts.items() if count > 1}
    assert len(again) <= session.CONFIRM_LEADERS * session.CONFIRM_ROUNDS + 1
    sound = [c for c in feasible if device.fails(use.workload, c) is None]
    assert best_configs(store)[str(use.workload)] == str(
        min(sound, key=lambda c: device.true_time(use.workload, c))
    )


@pytest.mark.parametrize("seed", range(2))
def test_noise_does_not_win(store: Store, tune: Any, seed: int) -> None:
    """With measurements 20% off either way, what is chosen is still better than the default."""
    device = Synthetic(noise=0.2, seed=seed)
    tune(device, seed=seed)
    chosen = best_configs(store)
    truth = {
        str(use.workload): device.true_time(use.workload, Config.parse(chosen[str(use.workload)]))
        for use in USES
    }
    defaults = {str(use.workload): device.true_time(use.workload, safe_of(use)) for use in USES}
    assert request_seconds(truth) < 0.9 * request_seconds(defaults)


def test_what_fails_when_timed_again_is_not_chosen(store: Store, tune: Any) -> None:
    """A kernel with a race is right now and then: once is not enough."""
    device = Synthetic()
    run = device.run
    seen: set[tuple[Workload, Config]] = set()

    def flaky(driver: str, workload: Workload, config: Config) -> Any:
        outcome = run(driver, workload, config)
        if (workload, config) in seen and config != safe_of(Use(workload, "decode", 1, 1)):
            return type(outcome)("wrong result", "not this time")
        seen.add((workload, config))
        return outcome

    device.run = flaky  # type: ignore[method-assign]
    tune(device)
    wrong = {(row.workload, row.config) for row in store.trials(status="wrong result")}
    assert wrong and not wrong & set(best_configs(store).items())
