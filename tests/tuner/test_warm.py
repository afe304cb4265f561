"""Searches that start from what was best for the nearest workload of the same operation."""

from __future__ import annotations

from typing import Any

import pytest

from clk_tuning import DRIVER, FEW, INFO, Synthetic, best_configs, chance, gemm, gemv
from clkiln.cache.rows import BestRow
from clkiln.cache.store import Store
from clkiln.kernels import SPECS
from clkiln.kernels.types import Config, Workload
from clkiln.kernels.uses import Use
from clkiln.kernels.variants import VariantRequest
from clkiln.tuner.levels import Level
from clkiln.tuner.record import undone


def alike(device: Synthetic) -> Synthetic:
    """The same device, on which a configuration is as good for one workload as for another."""

    def true_time(workload: Workload, config: Config) -> float:
        return 1e-4 * (0.2 + chance(device.seed, workload.op, config))

    device.true_time = true_time  # type: ignore[method-assign]
    return device


def use(workload: Workload) -> Use:
    return Use(workload, "decode", 1, 100, None)


def tried(device: Synthetic, workload: Workload) -> list[Config]:
    """Configurations of ``workload`` in the order of trials, without the safe default."""
    safe = SPECS[workload.op].safe(workload, INFO)
    return [config for at, config in device.trials if at == workload and config != safe]


@pytest.mark.parametrize("seed", range(3))
def test_a_search_starts_from_the_nearest_on_file(store: Store, tune: Any, seed: int) -> None:
    near, far, new = gemv(96), gemv(1024), gemv(128)
    tune(alike(Synthetic(seed=seed)), [use(near), use(far)])
    best = Config.parse(best_configs(store)[str(near)])
    device = alike(Synthetic(seed=seed))
    tune(device, [use(new)])
    if best != SPECS["gemv"].safe(near, INFO):
        assert tried(device, new)[0] == best
    times = {w: device.true_time(w, Config.parse(best_configs(store)[str(w)])) for w in (near, new)}
    assert times[new] <= times[near]


@pytest.mark.parametrize("stop", [1, 2, 3, 5])
def test_a_run_cut_short_is_no_worse_than_what_was_borrowed(
    store: Store, tune: Any, stop: int
) -> None:
    """Before the run an engine borrowed; after it the row that is there counts, and stays good."""
    tune(alike(Synthetic()), [use(gemv(96))])
    lent = Config.parse(best_configs(store)[str(gemv(96))])
    device = alike(Synthetic())

    def interrupt(trials: list[Any]) -> None:
        if len(trials) == stop:
            raise KeyboardInterrupt

    device.before = interrupt
    with pytest.raises(KeyboardInterrupt):
        tune(device, [use(gemv(n)) for n in (100, 128, 160, 192)])
    rows = [row for row in store.best_rows() if row.workload != str(gemv(96))]
    assert rows
    for row in rows:
        workload = Workload.parse(row.workload)
        found = device.true_time(workload, Config.parse(row.config))
        assert found <= device.true_time(workload, lent)


def test_what_is_found_on_the_way_is_tried_on_the_others(store: Store, tune: Any) -> None:
    """Ten times as many trials on one of them: what it finds is handed on while the run lasts."""
    ns = (96, 112, 128, 144)
    device = alike(Synthetic(seed=6))
    tune(device, [use(gemv(n)) for n in ns], level=Level("normal", 2, None, 30))
    best = {n: Config.parse(best_configs(store)[str(gemv(n))]) for n in ns}
    times = sorted(device.true_time(gemv(n), config) for n, config in best.items())
    assert times[0] == times[-1]


def test_nothing_is_borrowed_that_cannot_run(store: Store, tune: Any) -> None:
    """Parameters of floats lack the scales' bits, a wide work-group has no work on few rows."""
    spec = SPECS["gemv"]
    lender = gemv(4096, w="f16")
    wide = next(c for c in spec.feasible(lender, INFO) if c["LX"] == 32 and c["G"] == 4)
    rows = [
        (str(lender), spec.digest(), str(wide)),
        (str(gemv(48)), spec.digest(), "{"),
        (str(gemv(49)), "of another source", str(spec.safe(gemv(49), INFO))),
        ("gemv", spec.digest(), str(wide)),
        ("nothing n=1", spec.digest(), str(wide)),
    ]
    for workload, digest, config in rows:
        store.set_best(BestRow(workload, DRIVER, digest, config, 1e-9))
    device = Synthetic()
    tune(device, [use(gemv(52)), use(gemv(52, w="f16")), use(gemm(52))])
    for workload, config in device.trials:
        assert SPECS[workload.op].contains(workload, config)
        assert SPECS[workload.op].check(workload, config, INFO) is None


@pytest.mark.parametrize("seconds", [0.5, 2.0, 8.0])
def test_more_uses_than_there_is_time_for(store: Store, tune: Any, seconds: float) -> None:
    """Slow trials, many workloads: the first groups are searched and whole, the rest is left."""
    uses = [
        Use(w, "decode" if w.op == "gemv" else "prefill", 1, 100, f"group {n}")
        for n in range(96, 196, 2)
        for w in (gemv(n), gemm(n))
    ]
    device = Synthetic(seconds=seconds)
    level = Level("fast", 1, 45.0, 20)
    result = tune(device, uses, level=level, reach=1 / 3)
    tried = {str(workload) for workload, _ in device.trials}
    assert tried == {row.workload for row in store.best_rows()}
    assert tried == {str(use.workload) for use in uses[: len(tried)]}
    assert len(tried) % 2 == 0
    # A third of three quarters of the time, and a group that was begun.
    assert len(tried) <= 0.25 * 45 / seconds + 2
    assert result.trials > 2 * len(tried) or len(tried) == 2
    left = undone(store, DRIVER, uses, level, VariantRequest())
    assert left == uses[len(tried) :]
    again = Synthetic(seconds=seconds)
    tune(again, left, level=level, reach=1 / 3, others=uses[: len(tried)])
    assert not {str(workload) for workload, _ in again.trials} & tried


def test_a_kind_that_was_asked_for_is_kept(store: Store, tune: Any) -> None:
    tune(Synthetic(), [use(gemv(96))], level=FEW)
    images = Synthetic()
    tune(images, [use(gemv(128))], variants=VariantRequest("image"))
    assert {config.variant for _, config in images.trials} == {"image"}
