"""The strategy: everything once, in the same order for a seed, and far better than luck."""

from __future__ import annotations

import itertools
import math
import random
import statistics
import time as clock
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from clk_tuning import chance
from clkiln.tuner import strategy as strategy_module
from clkiln.tuner.grid import Grid
from clkiln.tuner.strategy import Strategy
from clkiln.tuner.surrogate import Surrogate

Config = dict[str, Any]
Time = Callable[[Config], float | None]


def product(
    keep: Callable[[Config], bool] = lambda config: True, **values: list[Any]
) -> list[Config]:
    every = (dict(zip(values, point, strict=True)) for point in itertools.product(*values.values()))
    return [config for config in every if keep(config)]


def run(search: Strategy, configs: list[Config], time: Time, most: int = 10**9) -> list[int]:
    """Ask and tell ``most`` times, or until nothing is left; what was asked for."""
    asked: list[int] = []
    while len(asked) < most and (index := search.ask()) is not None:
        asked.append(index)
        search.tell(index, time(configs[index]))
    return asked


# -- spaces ----------------------------------------------------------------------------------------


def rugged(seed: int) -> tuple[list[Config], Time]:
    """A factor for each value and for each pair of values, at random; nothing is ordered."""
    sizes = {"a": 6, "b": 5, "c": 4, "d": 3, "e": 3, "f": 2}
    configs = product(**{name: [f"{name}{i}" for i in range(n)] for name, n in sizes.items()})

    def time(config: Config) -> float:
        alone = sum(0.5 * chance(seed, item) for item in config.items())
        pairs = itertools.combinations(config.items(), 2)
        return 2 * math.exp(alone + sum(0.15 * chance(seed, pair) for pair in pairs))

    return configs, time


def tiled(seed: int) -> tuple[list[Config], Time]:
    """Tiles under a constraint, steps in the time, and what uses too much does not work."""
    configs = product(
        lambda c: 32 <= c["x"] * c["y"] <= 1024,
        x=[1, 2, 4, 8, 16, 24, 32, 64, 128], y=[1, 2, 4, 8, 16], rows=[1, 2, 3, 4, 6, 8],
        vector=[1, 2, 4, 8], local=[False, True],
    )  # fmt: skip

    def time(config: Config) -> float | None:
        group = config["x"] * config["y"]
        registers = 16 + 3 * config["rows"] * config["vector"]
        if registers > 150 or (config["local"] and group * config["rows"] > 3000):
            return None
        waves = math.ceil(1536 / (registers * group // 64 + 64))
        read = (1 + 2 / config["x"]) * (1 if config["local"] else 1.4 + 1 / config["rows"])
        return (1 / config["rows"] + read) * (1 + 1 / waves) * (1 + 0.1 * chance(seed, group))

    return configs, time


def variants(seed: int) -> tuple[list[Config], Time]:
    """Variants with parameters of their own; a sixth of it fails, in regions."""
    rows, steps = [1, 2, 4, 8], [1, 2, 4]
    configs = [
        *product(variant=["buffer"], rows=rows, width=[1, 2, 4, 8, 16], step=steps),
        *product(variant=["image"], rows=rows, fold=[1, 2, 4, 8], step=steps),
        *product(variant=["local"], width=[1, 2, 4, 8, 16], tile=[8, 16, 32, 64], step=steps),
    ]

    def time(config: Config) -> float | None:
        if chance(seed, "fails", config["variant"], config["step"], config.get("width")) < 0.16:
            return None
        return math.exp(sum(0.5 * chance(seed, item) for item in config.items()))

    return configs, time


# -- what holds of any answers ---------------------------------------------------------------------


@pytest.mark.parametrize("failing", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("size", [1, 2, 3, 60])
def test_each_is_asked_for_once(size: int, failing: float) -> None:
    configs = product(a=list(range(20)), b=["p", "q", 3])[:size]
    search = Strategy(configs, seed=size)
    asked = run(search, configs, lambda c: None if chance(c) < failing else 1 + chance("t", c))
    assert sorted(asked) == list(range(size))
    assert search.ask() is None
    worked = [(1 + chance("t", c), i) for i, c in enumerate(configs) if chance(c) >= failing]
    assert search.best == (pytest.approx(min(worked)[::-1]) if worked else None)


def test_nothing_to_search() -> None:
    assert Strategy([]).ask() is None
    assert Strategy([{}]).ask() == 0


def test_the_same_seed_asks_the_same() -> None:
    configs, time = variants(1)
    first, again = (run(Strategy(configs, seed=3), configs, time, 90) for _ in range(2))
    other = run(Strategy(configs, seed=4), configs, time, 90)
    assert first == again != other


def test_a_run_that_is_begun_again_goes_on_alike() -> None:
    """Whoever answers the first questions from a file is asked what an undisturbed run is."""
    configs, time = tiled(2)
    whole = run(Strategy(configs, seed=5), configs, time, 60)
    for cut in (0, 1, 17, 41):
        kept = {index: time(configs[index]) for index in whole[:cut]}
        again = Strategy(configs, seed=5)
        for _ in range(cut):
            index = again.ask()
            assert index is not None
            again.tell(index, kept[index])
        assert run(again, configs, time, 60 - cut) == whole[cut:]


def test_starts_come_first_unless_known() -> None:
    configs, time = rugged(1)
    search = Strategy(configs, starts=[7, 3, 7, 11], seed=0)
    search.tell(3, 1.0)
    asked = run(search, configs, time, 30)
    assert asked[:2] == [7, 11]
    assert len({3, *asked}) == 31


def test_known_results_are_not_asked_for_and_lead() -> None:
    """With a third of the space on file, the first question is near the optimum of the rest."""
    configs, time = rugged(2)
    known = random.Random(0).sample(range(len(configs)), len(configs) // 3)
    search = Strategy(configs, seed=1)
    for index in known:
        search.tell(index, time(configs[index]))
    first = run(search, configs, time, 5)
    assert not set(first) & set(known)
    ranked = sorted(time(c) or math.inf for c in configs)
    assert min(time(configs[i]) or math.inf for i in first) <= ranked[len(configs) // 100]


def test_several_open_questions_differ_and_spread() -> None:
    configs, time = tiled(1)
    search = Strategy(configs, seed=2)
    run(search, configs, time, 20)
    batch = [search.ask() for _ in range(8)]
    assert len(set(batch)) == 8 and None not in batch
    for index in batch:
        assert index is not None
        search.tell(index, time(configs[index]))
    assert len(set(run(search, configs, time, 20)) | set(batch)) == 28  # type: ignore[arg-type]


@pytest.mark.parametrize("time", [0.0, -1.0, math.nan, math.inf])
def test_what_is_no_time_is_refused(time: float) -> None:
    search = Strategy([{"a": 1}, {"a": 2}])
    with pytest.raises(ValueError, match="not a time"):
        search.tell(0, time)
    with pytest.raises(ValueError, match="no configuration"):
        search.tell(2, 1.0)
    assert search.best is None


# -- quality ---------------------------------------------------------------------------------------


def reached(configs: list[Config], time: Time, asked: list[int]) -> float:
    """The optimum over the best that was found."""
    best = min((t for i in asked if (t := time(configs[i])) is not None), default=math.inf)
    return min(t for c in configs if (t := time(c)) is not None) / best


@pytest.mark.parametrize("space", [rugged, tiled, variants])
def test_it_beats_luck(space: Callable[[int], tuple[list[Config], Time]]) -> None:
    """In the median, 30 trials come closer to the optimum than 150 at random."""
    found, lucky = [], []
    for seed in range(5):
        configs, time = space(seed)
        found.append(reached(configs, time, run(Strategy(configs, seed=seed), configs, time, 30)))
        sample = random.Random(seed).sample(range(len(configs)), min(150, len(configs) // 2))
        lucky.append(reached(configs, time, sample))
    assert statistics.median(found) >= max(0.93, statistics.median(lucky))


def test_it_keeps_off_what_fails() -> None:
    """Half of the space never works; of the trials, a tenth at most are lost to it."""
    configs = product(a=list(range(8)), b=list(range(8)), c=["x", "y"], d=[1, 2, 4, 8])

    def time(config: Config) -> float | None:
        return None if config["c"] == "y" else 1 + config["a"] * 0.1 + chance(config)

    lost = []
    for seed in range(4):
        asked = run(Strategy(configs, seed=seed), configs, time, 40)
        lost.append(sum(configs[index]["c"] == "y" for index in asked))
    assert statistics.median(lost) <= 4


def test_a_misleading_prior_is_overcome() -> None:
    """The best numbers are odd and lie at the edge, against all that is expected of a kernel."""
    configs = product(a=list(range(1, 10)), b=list(range(1, 16)), c=[1, 2, 3, 5, 7])

    def time(c: Config) -> float:
        powers = sum(v & (v - 1) == 0 for v in c.values())
        return math.exp(0.1 * (9 - c["a"]) + 0.05 * (15 - c["b"]) + 0.1 * c["c"] + 0.3 * powers)

    for seed in range(3):
        assert reached(configs, time, run(Strategy(configs, seed=seed), configs, time, 60)) > 0.95


# -- bounded cost ----------------------------------------------------------------------------------


def test_a_larger_space_is_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the model does not see at first is asked for in the end, and the optimum early."""
    monkeypatch.setattr(strategy_module, "NARROWEST", 60)
    monkeypatch.setattr(strategy_module, "WIDEST", 100)
    monkeypatch.setattr(strategy_module, "CAPACITY", 48)
    monkeypatch.setattr(strategy_module, "KEPT", 32)
    configs, time = tiled(3)
    configs = configs[::2]
    asked = run(Strategy(configs, seed=0), configs, time)
    assert sorted(asked) == list(range(len(configs)))
    assert reached(configs, time, asked[:80]) > 0.95


def test_a_huge_space_takes_bounded_time() -> None:
    """300,000 configurations: a question takes far less than a trial."""
    values = list(range(1, 9))
    configs = product(a=values, b=values, c=values, d=values, e=values, f=list(range(9)))
    search = Strategy(configs, seed=0)
    begun = clock.process_time()
    asked = run(search, configs, lambda c: 1 + chance(c), 40)
    assert len(set(asked)) == 40
    assert (clock.process_time() - begun) / 40 < 0.5


# -- the model -------------------------------------------------------------------------------------


def test_updates_equal_a_solution_from_scratch() -> None:
    """Row by row or at once, and as the textbook's formula has it."""
    grid = Grid(tiled(0)[0][:150])
    at = np.random.default_rng(0).choice(grid.size, 40, replace=False)
    targets = np.random.default_rng(1).normal(size=40)
    grown, whole = Surrogate(grid, 64), Surrogate(grid, 64)
    for index in at:
        grown.add(int(index))
    whole.reset(at)
    for a, b in zip(grown.predict(targets), whole.predict(targets), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-3)
    mean, deviation = whole.predict(targets)
    np.testing.assert_allclose(mean[at], targets, atol=0.1)
    assert deviation[at].max() < 0.3 * np.delete(deviation, at).min()


def test_a_fit_finds_the_parameter_that_matters() -> None:
    configs = product(a=list(range(8)), b=list(range(8)), c=[0, 1])
    grid = Grid(configs)
    at = np.random.default_rng(0).choice(grid.size, 60, replace=False)
    targets = np.array([math.sin(configs[i]["a"]) for i in at])
    model = Surrogate(grid, 64)
    model.fit(at, targets, 30)
    model.reset(at)
    mean, _ = model.predict(targets)
    rest = np.setdiff1d(np.arange(grid.size), at)
    truth = np.array([math.sin(configs[i]["a"]) for i in rest])
    assert np.sqrt(np.mean((mean[rest] - truth) ** 2)) < 0.15


def test_values_of_all_kinds() -> None:
    """True is no number, a missing parameter is a value, numbers are ordered."""
    grid = Grid([{"a": 16, "b": True}, {"a": 2}, {"a": 4, "b": 1}, {"a": 3, "b": "x"}, {"a": "no"}])
    assert grid.values[0] == [2, 3, 4, 16, "no"]
    assert len(grid.values[1]) == 4
    assert grid.odd.tolist() == [0, 0, 0, 1, 0]
    for table in grid.tables:
        assert (table == table.transpose(0, 2, 1)).all() and not table[
            :, *np.diag_indices(table.shape[1])
        ].any()
    assert grid.apart(0).tolist() == [0, 2, 2, 2, 2]
