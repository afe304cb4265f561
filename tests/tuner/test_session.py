"""Tuning runs over a synthetic device: what is kept, what is tried again, and what never is."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from clk_cache import memory_store
from clk_devices import make_info
from clk_tuning import (
    DRIVER,
    INFO,
    USES,
    Synthetic,
    chance,
    gemv,
    missing_binaries,
    split_groups,
    with_roofs,
)
from clkiln.cache.store import Store
from clkiln.errors import TuningError
from clkiln.kernels import SPECS
from clkiln.kernels.types import Config, Workload
from clkiln.kernels.uses import Use
from clkiln.kernels.variants import VariantRequest
from clkiln.tuner import session
from clkiln.tuner.levels import LEVELS, Level
from clkiln.tuner.record import undone
from clkiln.tuner.session import Progress, TuningRun

#: As many trials to a workload as keep a test quick, without a limit of time.
FEW = Level("normal", 2, None, 10)
#: As the level of that name, with fewer trials.
FAST = Level("fast", 1, 45.0, 6)
FREE = VariantRequest()


@pytest.fixture
def store() -> Iterator[Store]:
    with memory_store() as store:
        yield with_roofs(store, DRIVER)


@pytest.fixture
def tune(store: Store, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that makes one tuning run on a synthetic device, and returns its result."""

    def run(device: Synthetic, uses: Any = USES, level: Level = FEW, **options: Any) -> Any:
        info = options.pop("info", INFO)
        monkeypatch.setattr(session, "Worker", device.worker)
        monkeypatch.setattr(session, "time", SimpleNamespace(monotonic=device.monotonic))
        return TuningRun(store, info, uses, level, **options).run()

    return run


def best_times(store: Store, driver: str = DRIVER) -> dict[str, float]:
    return {row.workload: row.time for row in store.best_rows(driver=driver)}


def best_configs(store: Store, driver: str = DRIVER) -> dict[str, str]:
    return {row.workload: row.config for row in store.best_rows(driver=driver)}


def request_seconds(times: dict[str, float], uses: Any = USES) -> float:
    return float(sum(use.cost(times[str(use.workload)]) for use in uses))


def safe_of(use: Use) -> Config:
    return SPECS[use.workload.op].safe(use.workload, INFO)


# --- one run --------------------------------------------------------------------------------------


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


# --- run after run --------------------------------------------------------------------------------


def searched_twice(store: Store, driver: str = DRIVER) -> list[tuple[str, str]]:
    """What was tried again although it had failed: only leaders are timed again."""
    failed: set[tuple[str, str]] = set()
    twice = []
    for row in store.trials(driver=driver):
        if (row.workload, row.config) in failed:
            twice.append((row.workload, row.config))
        if row.status != "ok":
            failed.add((row.workload, row.config))
    return twice


@pytest.mark.parametrize("seed", range(4))
def test_interrupted_runs_lose_nothing_and_go_on(store: Store, tune: Any, seed: int) -> None:
    """Ctrl-C at random trials: what was done is on file, and the next run does the rest."""
    rng = random.Random(seed)
    done = 0
    for _ in range(4):
        stop = rng.randrange(1, 40)

        def interrupt(trials: list[Any], stop: int = stop) -> None:
            if len(trials) == stop:
                raise KeyboardInterrupt

        device = Synthetic(failing=0.3, seed=seed, before=interrupt)
        try:
            tune(device, seed=seed)
        except KeyboardInterrupt:
            assert len(device.trials) == stop
        done += len(device.trials)
        assert len(store.trials(driver=DRIVER)) == done
        for row in store.best_rows(driver=DRIVER):
            sound = store.trials(workload=row.workload, driver=DRIVER, status="ok")
            assert (row.config, row.time) in {(t.config, t.time) for t in sound}
    tune(Synthetic(failing=0.3, seed=seed), seed=seed)
    assert searched_twice(store) == []
    assert missing_binaries(store, DRIVER) == []
    assert split_groups(store, DRIVER, USES) == []
    assert undone(store, DRIVER, USES, FEW, FREE) == []
    tried = Counter(row.workload for row in store.trials(driver=DRIVER))
    assert set(tried) == {str(use.workload) for use in USES}


def test_a_lost_device_ends_the_run_and_keeps_what_was_found(store: Store, tune: Any) -> None:
    def die(trials: list[Any]) -> None:
        if len(trials) == 15:
            raise TuningError("8 trials in a row ended their worker")

    with pytest.raises(TuningError):
        tune(Synthetic(before=die))
    assert len(store.trials()) == 15 and len(store.best_rows()) == len(USES)
    assert undone(store, DRIVER, USES, FEW, FREE) == list(USES)


@pytest.mark.parametrize("seed", range(2))
def test_runs_over_parts_leave_every_choice_its_binary(store: Store, tune: Any, seed: int) -> None:
    """Workloads share programs (rmsnorm of one row and of eight): none may lose the other's."""
    rng = random.Random(seed)
    for turn in range(5):
        part = [use for use in USES if rng.random() < 0.5] or [USES[5]]
        tune(Synthetic(seed=seed, scale=1 + turn), part, force=turn % 2 == 1, seed=turn)
        assert missing_binaries(store, DRIVER) == []


def test_a_shared_program_outlives_one_of_its_workloads(store: Store, tune: Any) -> None:
    """rmsnorm of one row and of eight is one program; a later run moves on for one of them."""
    one, eight = USES[5], USES[6]
    assert one.workload.op == eight.workload.op == "rmsnorm"
    device = Synthetic()
    device.true_time = lambda workload, config: 1e-4 + chance(config)  # type: ignore[method-assign]
    tune(device, [one, eight], level=LEVELS["exhaustive"])
    shared = best_configs(store)
    assert len(set(shared.values())) == 1
    device.true_time = lambda workload, config: 2e-4 + chance("anew", config)  # type: ignore[method-assign]
    tune(device, [one], level=LEVELS["exhaustive"], force=True)
    now = best_configs(store)
    assert now[str(one.workload)] != shared[str(one.workload)]
    assert now[str(eight.workload)] == shared[str(eight.workload)]
    assert missing_binaries(store, DRIVER) == []


def test_a_default_that_fails_is_not_tried_again(store: Store, tune: Any) -> None:
    """It may be one that hangs: neither in this run nor in the next."""
    for _ in range(2):
        tune(Synthetic(failing=0.7, sound_defaults=False))
    device = Synthetic(failing=0.7, sound_defaults=False)
    failed = [use for use in USES if device.fails(use.workload, safe_of(use))]
    assert failed and searched_twice(store) == []
    assert {str(use.workload) for use in USES} == {row.workload for row in store.best_rows()}


def test_force_searches_again_and_forgets_the_old_times(store: Store, tune: Any) -> None:
    """Also where everything has become slower since."""
    tune(Synthetic())
    before = best_times(store)
    count = len(store.trials())
    forced = Synthetic(scale=3.0)
    tune(forced, force=True)
    assert len(store.trials()) == count + len(forced.trials)
    assert {workload for workload, _ in forced.trials} == {use.workload for use in USES}
    after = best_times(store)
    for workload, time in after.items():
        config = Config.parse(best_configs(store)[workload])
        assert time == forced.true_time(Workload.parse(workload), config) > before[workload]
    assert missing_binaries(store, DRIVER) == []


def test_a_second_run_tries_nothing_that_was_tried(store: Store, tune: Any) -> None:
    tune(Synthetic(failing=0.3), level=FEW)
    first = {(row.workload, row.config) for row in store.trials()}
    more = Level("wide", 3, None, 24)
    device = Synthetic(failing=0.3)
    tune(device, level=more)
    again = [pair for pair in device.trials if (str(pair[0]), str(pair[1])) in first]
    # Only leaders and the default, whose times are measured again.
    leaders = session.CONFIRM_LEADERS * session.CONFIRM_ROUNDS + 1
    assert all(count <= leaders for count in Counter(w for w, _ in set(again)).values())
    assert len(device.trials) > len(again)
    assert searched_twice(store) == []


def test_another_driver_starts_from_the_old_choice(store: Store, tune: Any) -> None:
    """Timed again before anything is searched, as nothing else is taken over."""
    tune(Synthetic(seed=3))
    old = best_configs(store)
    newer = make_info(driver_version="7.2")
    with_roofs(store, newer.driver_key)
    device = Synthetic(seed=3)
    tune(device, info=newer, level=Level("fast", 1, None, 3))
    for use in USES:
        tried = [config for workload, config in device.trials if workload == use.workload]
        assert [str(c) for c in tried if c != safe_of(use)][:1] == [old[str(use.workload)]] or old[
            str(use.workload)
        ] == str(safe_of(use))
    assert request_seconds(best_times(store, newer.driver_key)) <= request_seconds(
        best_times(store)
    ) * (1 + 1e-9)
    assert missing_binaries(store, DRIVER) == missing_binaries(store, newer.driver_key) == []


# --- what is done ---------------------------------------------------------------------------------


def test_done_is_what_got_its_levels_time(store: Store, tune: Any, monkeypatch: Any) -> None:
    normal = Level("normal", 2, 300.0, 8)
    assert undone(store, DRIVER, USES, normal, FREE) == list(USES)
    tune(Synthetic(), level=normal, seconds=20.0)
    assert undone(store, DRIVER, USES, normal, FREE) == list(USES)  # the budget cut it short
    tune(Synthetic(), level=normal, seconds=1e6)
    assert undone(store, DRIVER, USES, normal, FREE) == []
    assert undone(store, DRIVER, USES, LEVELS["fast"], FREE) == []
    assert undone(store, DRIVER, USES, LEVELS["wide"], FREE) == list(USES)
    assert undone(store, "another driver", USES, normal, FREE) == list(USES)
    monkeypatch.setattr(SPECS["gemv"], "_digest", "edited")
    edited = [use for use in USES if use.workload.op == "gemv"]
    assert undone(store, DRIVER, USES, normal, FREE) == edited


def test_a_run_over_some_kernels_marks_only_those(store: Store, tune: Any) -> None:
    tune(Synthetic(), USES[:2], level=FAST)
    assert undone(store, DRIVER, USES, FAST, FREE) == list(USES[2:])


def test_a_request_for_images_is_a_choice_of_its_own(store: Store, tune: Any) -> None:
    """It tries no buffer, and leaves the free choice, its mark and its binaries alone."""
    images = VariantRequest("image")
    tune(Synthetic(), level=FAST)
    before = best_configs(store)
    device = Synthetic()
    tune(device, level=FAST, variants=images)
    assert device.trials
    for workload, config in device.trials:
        if images.kind(workload.op):
            assert config.variant == "image"
    assert best_configs(store) == before and missing_binaries(store, DRIVER) == []
    assert undone(store, DRIVER, USES, FAST, images) == []


def test_images_first_leave_buffers_to_be_searched(store: Store, tune: Any) -> None:
    images = VariantRequest("image")
    tune(Synthetic(), level=FAST, variants=images)
    assert undone(store, DRIVER, USES, FAST, FREE) == list(USES)


def test_slow_images_after_quick_buffers(store: Store, tune: Any) -> None:
    """As on PoCL, where the best buffer is ten times quicker than any image."""
    device = Synthetic()
    plain = device.true_time

    def slow_images(workload: Workload, config: Config) -> float:
        return plain(workload, config) * (10 if config.variant == "image" else 1)

    device.true_time = slow_images  # type: ignore[method-assign]
    tune(device, [USES[1]], level=Level("wide", 3, None, 30))
    tried = len(device.trials)
    level = Level("exhaustive", 4, None, 60)
    tune(device, [USES[1]], level=level, variants=VariantRequest("image"))
    assert {config.variant for _, config in device.trials[tried:]} == {"image"}
