"""What a configuration pays for the conversions that it causes, and what becomes of these."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from clk_cache import write_rules
from clk_pocl import a_device
from clk_tuning import DRIVER, INFO, Synthetic, best_configs, gemm, gemv, missing_binaries
from clkiln.cache.store import Store
from clkiln.errors import LaunchError
from clkiln.kernels import SPECS
from clkiln.kernels.images import CONVERTED
from clkiln.kernels.rules import Ban, Rules
from clkiln.kernels.to_image.spec import ToImageSpec
from clkiln.kernels.types import Config, Workload
from clkiln.kernels.uses import Use
from clkiln.runtime.context import Context
from clkiln.tuner.convert import Conversions
from clkiln.tuner.levels import Level
from clkiln.tuner.measure import Timing
from clkiln.tuner.process import Worker
from clkiln.tuner.search import Search
from clkiln.tuner.tasks import Group, Task
from clkiln.tuner.trial import Bench, Outcome
from clkiln.tuner.wanted import Wanted, conversion_uses

GEMV = Workload.parse("gemv bias=no fuse=none k=70 n=37 w=f16")
MADE = Workload.parse("to_image k=70 m=1")


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with Context(a_device(), profiling=True) as context:
        yield Bench(context)


def reading(form: int) -> Config:
    config = SPECS["gemv"].safe_of_kind(GEMV, INFO, "image")
    assert config is not None
    return config.replace(XM=form, U=4)


# -- trials ----------------------------------------------------------------------------------------


def test_a_trial_pays_for_what_it_needs(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time of the conversion is on top of its own, and said."""
    monkeypatch.setattr(Conversions, "time", lambda *args: Timing(10.0, 0.5, 7))
    paid, free = (bench.trial(GEMV, reading(form), None) for form in (CONVERTED, 0))
    assert paid.status == free.status == "ok"
    assert paid.time is not None and 10.0 < paid.time < 11.0
    assert paid.spread is not None and paid.spread >= 0.5
    assert paid.message == f"with 10 s of {MADE}"
    assert free.time is not None and free.time < 1.0 and not free.message
    assert bench.context.memory.used == 0


def test_a_conversion_is_measured(bench: Bench) -> None:
    outcome = bench.trial(GEMV, reading(CONVERTED), None)
    alone = bench.trial(MADE, SPECS["to_image"].safe(MADE, bench.context.info), None)
    assert outcome.status == alone.status == "ok"
    assert outcome.message.startswith("with ") and str(MADE) in outcome.message
    charged = float(outcome.message.split(" ")[1])
    assert outcome.time is not None and outcome.time > charged > 0
    assert alone.time is not None and alone.time / 50 < charged < 50 * alone.time
    assert bench.context.memory.used == 0


def test_a_conversion_that_is_wrong_is_no_base_for_a_trial(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = ToImageSpec.defines
    monkeypatch.setattr(ToImageSpec, "defines", lambda *args: {**sound(*args), "K": 69})
    monkeypatch.setattr(bench, "_conversions", Conversions(bench.context))
    outcome = bench.trial(GEMV, reading(CONVERTED), None)
    assert outcome.status == "launch error" and str(MADE) in outcome.message
    assert bench.context.memory.used == 0
    with pytest.raises(LaunchError, match="to_image"):
        Conversions(bench.context).time(MADE)


def test_what_is_charged_is_what_the_rules_leave(bench: Bench) -> None:
    """In the worker as well: of what is banned, nothing is even built."""
    safe = SPECS["to_image"].safe(MADE, bench.context.info)
    left = safe.replace(LX=2, U=2)
    for made in ({}, {MADE: left}):
        assert bench.trial(GEMV, reading(CONVERTED), None, made).status == "ok"
    assert set(bench._conversions._ready) >= {(MADE, safe), (MADE, left)}
    with Worker(bench.context.info.driver_key) as worker:
        config = reading(CONVERTED)
        assert worker.trial(GEMV, config, None, made={MADE: left}).status == "ok"
        outcome = worker.trial(GEMV, config, None, made={MADE: left.replace(LX=512)})
        assert outcome.status == "launch error" and "work-group 512 >" in outcome.message


# -- runs ------------------------------------------------------------------------------------------


class Inclined(Synthetic):
    """A device that likes images, and activations in them so much that they pay for it."""

    def true_time(self, workload: Workload, config: Config) -> float:
        own = super().true_time(workload, config)
        return own / (1, 5, 10, 100)[config.get("XM", -1) + 1]


USES = (
    Use(gemv(96), "decode", 3, 100, "up"),
    Use(gemv(112), "decode", 2, 100, "down"),
    Use(gemm(96), "prefill", 3, 4, "up"),
)
SMALL = Level("normal", 2, None, 30)


def made(workload: Workload) -> bool:
    return workload.op == "to_image"


@pytest.mark.parametrize("seed", range(3))
def test_what_is_chosen_brings_its_conversions(store: Store, tune: Any, seed: int) -> None:
    device = Inclined(conversion=0.0, seed=seed)
    tune(device, USES, SMALL, seed=seed)
    chosen = {Workload.parse(w): Config.parse(c) for w, c in best_configs(store).items()}
    needed = {
        conversion
        for workload, config in chosen.items()
        for conversion in SPECS[workload.op].conversions(workload, config).values()
    }
    assert needed and needed <= {workload for workload in chosen if made(workload)}
    assert missing_binaries(store, DRIVER) == []
    # Searched like any other, as far as the level goes.
    for conversion in needed:
        trials = [config for workload, config in device.trials if workload == conversion]
        feasible = SPECS[conversion.op].feasible(conversion, INFO)
        assert len(set(trials)) == min(SMALL.trials or 0, len(feasible))
        best = min(set(trials), key=lambda c: device.true_time(conversion, c))
        assert chosen[conversion] == best


def test_a_banned_conversion_is_not_run_to_price_its_readers(store: Store, tune: Any) -> None:
    write_rules(store, DRIVER, Rules().ban("to_image", "image", Ban("it crashes")))
    device = Inclined(conversion=0.0)
    tune(device, USES, SMALL)
    assert device.made and {config.variant for config in device.made.values()} == {"texels"}
    assert {config.variant for w, config in device.trials if made(w)} == {"texels"}


def test_where_no_conversion_is_left_nothing_asks_for_one(store: Store, tune: Any) -> None:
    """Single configurations, until it is the kernel that is wrong."""
    rules = Rules()
    for k in (64, 96, 112):
        conversion = Workload.of("to_image", k=k, m=1)
        while (config := rules.safe(conversion, INFO)) is not None:
            rules = rules.ban_config(conversion, config, Ban("wrong"))
    write_rules(store, DRIVER, rules)
    device = Inclined(conversion=0.0)
    tune(device, USES[:2], SMALL)
    assert device.trials and not device.made
    assert CONVERTED not in {config.get("XM", 0) for _, config in device.trials}


def test_what_is_too_dear_brings_none(store: Store, tune: Any) -> None:
    device = Synthetic(conversion=1.0)
    tune(device, USES, SMALL)
    assert not any(made(workload) for workload, _ in device.trials)
    forms = [Config.parse(c).get("XM", 0) for c in best_configs(store).values()]
    assert CONVERTED not in forms


def test_a_conversion_is_timed_however_late_it_is_needed(store: Store, tune: Any) -> None:
    """Even past the budget: an engine that has to be warm needs its program."""

    class Late(Inclined):
        def run(self, driver: str, workload: Workload, config: Config) -> Outcome:
            outcome = super().run(driver, workload, config)
            if config.get("XM", 0) == CONVERTED:
                self.now += 1e6
            return outcome

    device = Late(conversion=0.0)
    tune(device, USES[:1], SMALL, seconds=100.0)
    *_, (reader, config), (last, safe) = device.trials
    assert config["XM"] == CONVERTED and [last] == [
        *SPECS["gemv"].conversions(reader, config).values()
    ]
    assert best_configs(store) == {str(reader): str(config), str(last): str(safe)}
    assert missing_binaries(store, DRIVER) == []


def test_a_second_run_takes_up_the_conversions_of_the_first(store: Store, tune: Any) -> None:
    tune(Inclined(conversion=0.0), USES, SMALL)
    before = best_configs(store)
    device = Inclined(conversion=0.0)
    tune(device, USES, SMALL)
    assert best_configs(store) == before
    assert len({str(w) for w, _ in device.trials if made(w)}) <= 2


def test_a_conversion_nothing_needs_any_more_is_left(store: Store, tune: Any) -> None:
    """Its place is kept, and no trial is spent on it."""

    def new(use: Use) -> Task:
        spec = SPECS[use.workload.op]
        return Task(use, Search(spec, use.workload, INFO), spec.safe(use.workload, INFO))

    tasks = [new(use) for use in USES[:2]]
    groups = [Group([task]) for task in tasks]
    wanted = Wanted(new)
    assert wanted.update(groups) == [] and conversion_uses(groups) == {}
    for task, seconds in zip(tasks, (2.0, 3.0), strict=True):
        config = next(c for c in task.search.feasible or () if c.get("XM", 0) == CONVERTED)
        task.note(config, seconds)
    (task,) = wanted.update(groups)
    assert (str(task.workload), task.use.launches, task.use.steps) == ("to_image k=64 m=1", 5, 100)
    assert wanted.untimed() == [task] and wanted.update(groups) == []
    tasks[0].note(tasks[0].safe, 1.0)
    wanted.update(groups)
    assert task.use.launches == 2
    tasks[1].note(tasks[1].safe, 1.0)
    wanted.update(groups)
    assert task.use.launches == 0 and wanted.untimed() == []
