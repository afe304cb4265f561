"""Run after run: nothing is lost, nothing is done twice, and no choice lacks its program."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

from clk_devices import make_info
from clk_tuning import (
    DRIVER,
    FAST,
    FEW,
    FREE,
    USES,
    Synthetic,
    best_configs,
    best_times,
    chance,
    missing_binaries,
    request_seconds,
    safe_of,
    split_groups,
    with_roofs,
)
from clkiln.cache.rows import BestRow, TrialRow
from clkiln.cache.store import Store
from clkiln.errors import TuningError
from clkiln.kernels import SPECS
from clkiln.kernels.types import Config, Workload
from clkiln.kernels.variants import VariantRequest
from clkiln.runtime.program import program_key
from clkiln.tuner import session
from clkiln.tuner.levels import LEVELS, Level
from clkiln.tuner.record import undone


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
            # More may have run: a program that an earlier run chose and let go is built again.
            done += tune(device, seed=seed).trials
        except KeyboardInterrupt:
            assert len(device.trials) == stop
            done += stop
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
            raise TuningError("the tuning worker could not open the device")

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


@pytest.mark.parametrize("text", ["rmsnorm d=64 eps=1e-05 m=1", "rmsnorm", "nothing=1", "old k=1"])
def test_rows_of_another_clkiln_do_not_stop_a_run(store: Store, tune: Any, text: str) -> None:
    """A choice of an edited kernel, whose parameters have other names, or of one that is gone."""
    config = '{"ITEMS":4,"variant":"buffer"}'
    store.set_best(BestRow(text, DRIVER, "an older digest", config, 1e-3))
    store.add_trial(TrialRow(text, DRIVER, SPECS["rmsnorm"].digest(), config, "ok", 1e-9))
    tune(Synthetic(), USES[5:])
    rows = [row for row in store.best_rows() if row.digest != "an older digest"]
    assert {row.workload for row in rows} == {str(use.workload) for use in USES[5:]}
    assert config not in {row.config for row in rows}


def test_programs_of_other_requests_are_kept(store: Store, tune: Any) -> None:
    """What a free run no longer needs, a choice under ``--variant`` may."""
    device, use = Synthetic(), USES[5]
    level = LEVELS["exhaustive"]
    tune(device, [use], level=level)
    tune(device, [use], level=level, variants=VariantRequest("buffer"))
    chosen = best_configs(store)[str(use.workload)]
    tune(Synthetic(seed=7), [use], level=level, force=True)
    assert best_configs(store)[str(use.workload)] != chosen
    source = SPECS["rmsnorm"].source(use.workload, Config.parse(chosen))
    assert store.get_binaries([program_key(DRIVER, source)])


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


@pytest.mark.parametrize("stop", [1, 2, 5, 9, 20])
def test_a_forced_run_that_is_interrupted_costs_no_choice(
    store: Store, tune: Any, stop: int
) -> None:
    """Ctrl-C after any trial leaves what was chosen, or what is as good, and work to go on with."""
    tune(Synthetic())
    before = best_times(store)

    def interrupt(trials: list[Any]) -> None:
        if len(trials) == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(Synthetic(before=interrupt), force=True)
    after = best_times(store)
    assert request_seconds(after) <= request_seconds(before) * (1 + 1e-9)
    assert missing_binaries(store, DRIVER) == []
    assert undone(store, DRIVER, USES, FEW, FREE) == list(USES)


def test_a_second_run_tries_nothing_that_was_tried(store: Store, tune: Any) -> None:
    tune(Synthetic(failing=0.3), level=FEW)
    first = {(row.workload, row.config) for row in store.trials()}
    more = Level("wide", 3, None, 14)
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


@pytest.mark.parametrize("seed", [1, 2, 7])
@pytest.mark.parametrize("force", [False, True])
def test_a_run_over_some_kernels_keeps_groups_whole(
    store: Store, tune: Any, seed: int, force: bool
) -> None:
    """A layout is no good in which another reader of the same weight was never tried."""
    tune(Synthetic(seed=seed))
    some = [use for use in USES if use.workload.op == "gemv"]
    others = [use for use in USES if use not in some]
    wide = Level("wide", 3, None, 40)
    tune(Synthetic(seed=seed), some, level=wide, others=others, force=force)
    assert split_groups(store, DRIVER, USES) == []
    assert missing_binaries(store, DRIVER) == []
    assert undone(store, DRIVER, USES, wide, FREE) == others


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


def test_what_no_image_can_hold_is_searched_in_buffers(store: Store, tune: Any) -> None:
    """Of what was asked of all operations; an operation that is asked by name has to run so."""
    info = make_info(image_max_buffer_size=20)  # 80 numbers: one row, and not eight
    images, device = VariantRequest("image"), Synthetic()
    tune(device, level=FAST, variants=images, info=info)
    found: dict[Workload, set[str]] = {}
    for workload, config in device.trials:
        found.setdefault(workload, set()).add(SPECS[workload.op].variant(config.variant).kind)
    many = Workload.of("rmsnorm", d=64, m=8, eps="1e-05")
    assert {workload for workload, kinds in found.items() if kinds != {"image"}} == {many}
    assert found[many] == {"buffer"}
    assert sum(workload == many for workload, _ in device.trials) > 1


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
