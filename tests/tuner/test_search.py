"""Search: proposes what can run and was not tried, ends when nothing is left, and beats luck."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable

import pytest

from clk_devices import make_info
from clk_tuning import USES, chance, gemv
from clkiln.kernels import SPECS
from clkiln.kernels.types import Config, Workload
from clkiln.tuner import search as search_module
from clkiln.tuner.search import Search

INFO = make_info()
SMALL = make_info(
    max_work_group_size=32,
    max_work_item_sizes=(32, 8, 1),
    local_memory=4 << 10,
    image2d_max_width=4096,
)
GEMV = gemv(960)


def make(workload: Workload = GEMV, seed: int = 0, **options: object) -> Search:
    return Search(SPECS[workload.op], workload, INFO, seed=seed, **options)  # type: ignore[arg-type]


def separable(workload: Workload, seed: int) -> Callable[[Config], float]:
    """A time that is a product of one factor for each parameter's value."""

    def time(config: Config) -> float:
        factors = (1 + 2 * chance(seed, name, value) for name, value in config.params)
        return 1e-5 * math.prod(factors) * (1 + (config.variant == "image"))

    return time


def run(search: Search, time: Callable[[Config], float | None], most: int) -> list[Config]:
    """Ask and tell ``most`` times, or until nothing is left; what was proposed."""
    asked: list[Config] = []
    while len(asked) < most and (config := search.ask()) is not None:
        asked.append(config)
        search.tell(config, time(config))
    return asked


@pytest.mark.parametrize("kind", [None, "buffer", "image"])
@pytest.mark.parametrize(("limits", "seed"), [(INFO, 0), (SMALL, 1)], ids=["large", "small"])
def test_proposals_are_new_and_feasible(limits: object, kind: str | None, seed: int) -> None:
    """Whatever half of them come to, and whatever an earlier run has tried."""
    spec, rng = SPECS["gemv"], random.Random(seed)
    feasible = spec.feasible(GEMV, limits, kind)  # type: ignore[arg-type]
    known = {config: rng.choice([None, rng.random()]) for config in rng.sample(feasible, 40)}
    search = Search(spec, GEMV, limits, kind=kind, tried=known, seed=seed)  # type: ignore[arg-type]
    asked = run(search, lambda config: rng.choice([None, rng.random()]), 40)
    assert len(asked) == 40 == len(set(asked))
    assert not set(asked) & set(known)
    assert set(asked) <= set(feasible)
    assert search.tried == 80


@pytest.mark.parametrize("workload", [USES[5].workload, USES[7].workload], ids=str)
@pytest.mark.parametrize("failing", [0.0, 0.5, 1.0])
def test_a_small_space_is_searched_to_its_end(workload: Workload, failing: float) -> None:
    """Each feasible configuration exactly once, even if every one fails."""
    feasible = SPECS[workload.op].feasible(workload, SMALL)
    search = Search(SPECS[workload.op], workload, SMALL)

    def time(config: Config) -> float | None:
        return None if chance(config) < failing else chance("time", config)

    asked = run(search, time, 10_000)
    assert len(asked) == len(feasible) and set(asked) == set(feasible)
    assert search.ask() is None
    if failing < 1:
        sound = [c for c in feasible if time(c) is not None]
        assert search.best is not None
        assert search.best[0] == min(sound, key=lambda c: time(c) or math.inf)
    else:
        assert search.best is None


def test_starts_come_first_in_their_order() -> None:
    feasible = SPECS["gemv"].feasible(GEMV, INFO)
    starts = [feasible[i] for i in (700, 3, 250, 3)]
    strange = Config.of("buffer", R=4, S=16, LX=1 << 20, KS=1, G=1, U=1)
    other = Config.of("texture", R=4)
    partial = Config.of("buffer", R=4)
    search = make(starts=[strange, starts[0], other, partial, *starts[1:]])
    assert run(search, lambda config: 1.0, 3) == [starts[0], starts[1], starts[2]]


def test_a_start_that_was_tried_is_not_tried_again() -> None:
    feasible = SPECS["gemv"].feasible(GEMV, INFO)
    search = make(starts=feasible[:3], tried={feasible[0]: 1.0, feasible[2]: None})
    assert search.ask() == feasible[1]


def test_the_same_seed_proposes_the_same() -> None:
    time = separable(GEMV, 0)
    first, second, other = (run(make(seed=seed), time, 16) for seed in (1, 1, 2))
    assert first == second != other


def test_every_variant_gets_a_chance() -> None:
    """Early on, and even where one is far behind."""
    asked = run(make(starts=[SPECS["gemv"].safe(GEMV, INFO)]), separable(GEMV, 1), 10)
    assert {config.variant for config in asked} == {"buffer", "image"}


def test_it_beats_luck_on_a_separable_space() -> None:
    """Trials to within 5% of the optimum, on average over seeds."""
    found: list[int] = []
    lucky: list[int] = []
    spec = SPECS["gemv"]
    feasible = spec.feasible(GEMV, INFO)
    for seed in range(2):
        time = separable(GEMV, seed)
        goal = 1.05 * min(map(time, feasible))
        asked = run(make(seed=seed), time, 50)
        found.append(next((i for i, c in enumerate(asked) if time(c) <= goal), 1000))
        rng = random.Random(seed)
        orders = (rng.sample(feasible, len(feasible)) for _ in range(20))
        lucky += [next(i for i, c in enumerate(order) if time(c) <= goal) for order in orders]
    assert statistics.mean(found) < 0.2 * statistics.mean(lucky)


# --- spaces that are too large to enumerate -------------------------------------------------------


@pytest.fixture
def endless(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_module, "ENUMERABLE", 0)


def test_without_enumeration_proposals_are_new_and_feasible(endless: None) -> None:
    search = make(starts=SPECS["gemv"].starts(GEMV, INFO))
    assert search.feasible is None
    rng = random.Random(0)
    asked = run(search, lambda config: rng.choice([None, rng.random()]), 40)
    assert len(asked) == 40 == len(set(asked))
    assert all(SPECS["gemv"].check(GEMV, config, INFO) is None for config in asked)


def test_without_enumeration_it_still_gets_near_the_optimum(endless: None) -> None:
    time = separable(GEMV, 0)
    best = min(map(time, SPECS["gemv"].feasible(GEMV, INFO)))
    asked = run(make(), time, 50)
    assert min(map(time, asked)) <= 1.25 * best


def test_without_enumeration_a_space_still_ends(endless: None) -> None:
    workload = USES[5].workload
    feasible = SPECS["rmsnorm"].feasible(workload, SMALL)
    asked = run(Search(SPECS["rmsnorm"], workload, SMALL), lambda config: 1.0, 10_000)
    assert set(asked) == set(feasible) and len(asked) == len(feasible)


# --- resumed searches -----------------------------------------------------------------------------


def test_a_resumed_search_knows_the_best() -> None:
    time = separable(GEMV, 4)
    first = make(seed=1)
    resumed = make(seed=2, tried={config: time(config) for config in run(first, time, 20)})
    assert resumed.best == first.best
    assert resumed.tried == 20
    config = resumed.ask()
    assert config is not None and resumed.is_new(config)


@pytest.mark.parametrize("kind", ["buffer", "image"])
def test_results_of_another_kind_do_not_confuse(kind: str) -> None:
    """A run for images after one for buffers, all of them quicker, and the other way round."""
    feasible = SPECS["gemv"].feasible(GEMV, INFO)
    others = [c for c in feasible if c.variant != kind][:60]
    search = make(kind=kind, tried={config: 1e-6 * (1 + chance(config)) for config in others})
    asked = run(search, lambda config: 1e-3 * (1 + chance(config)), 30)
    assert len(set(asked)) == 30
    assert {config.variant for config in asked} == {kind}


@pytest.mark.parametrize("known", [None, 0, 1, 2])
def test_every_form_of_a_variant_that_is_near_is_tried(known: int | None) -> None:
    """Right after the variants, one that was tried before not again; of one far behind none is."""
    info = make_info(features=frozenset({"images", "image_buffers"}))
    spec = SPECS["gemv"]

    def tried(penalty: float) -> list[int | None]:
        """By the form of x, None in buffers; the strategy's own proposals are left out."""
        search = Search(spec, GEMV, info, starts=[spec.safe(GEMV, info)])
        if known is not None:
            feasible = search.feasible or ()
            search.tell(next(c for c in feasible if c.get("XM", -1) == known), penalty)
        forms: list[int | None] = []
        while search._starts or search._first_of_way() is not None:
            config = search.ask()
            assert config is not None
            forms.append(config["XM"] if config.variant == "image" else None)
            search.tell(config, penalty if config.variant == "image" else 1.0)
        return forms

    near, far = tried(1.9), tried(2.1)
    assert near[0] is None and sorted(form for form in near if form is not None) == [
        form for form in (0, 1, 2) if form != known
    ]
    assert far[0] is None and len(far) == (2 if known is None else 1)
