"""Which configuration runs a workload, and how chosen programs become launches."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import clk_engine
from clk_cache import memory_store, quick, some_best, some_trial
from clk_run import Limits
from clkiln.cache.rows import BestRow
from clkiln.cache.store import Store
from clkiln.errors import LaunchError, UnsupportedOperation, UsageError
from clkiln.inference.choose import Chooser, together
from clkiln.inference.config import ModelConfig
from clkiln.inference.gguf import GGUFFile
from clkiln.inference.graph import Graph
from clkiln.inference.kv_cache import DEFAULT_KV
from clkiln.inference.plan import BoundStep, Plan, Planner
from clkiln.inference.resident import ResidentWeights
from clkiln.inference.weights import Weights
from clkiln.kernels import SPECS
from clkiln.kernels.types import Config, Geometry, Workload
from clkiln.kernels.variants import VariantRequest

LIMITS = Limits(
    "cpu", 2, 1 << 20, 4096, (4096,) * 3, features=frozenset({"images", "image_buffers"})
)
GEMM = Workload.parse("gemm bias=no fuse=none k=96 m=32 n=160 w=q4_0")
#: Feasible configurations of :data:`GEMM`, all different, in buffers and images.
FEASIBLE = SPECS["gemm"].feasible(GEMM, LIMITS)
configs = st.sampled_from(FEASIBLE)


def chooser(store: Store, *variants: str) -> Chooser:
    return Chooser(store, "mine", LIMITS, VariantRequest.parse(variants))


def best(workload: Workload, config: Config, driver: str = "mine", **changes: Any) -> BestRow:
    digest = SPECS[workload.op].digest()
    row = some_best(workload=str(workload), driver=driver, digest=digest, config=str(config))
    return some_best(**{**vars(row), **changes})


# -- the order of look-up --------------------------------------------------------------------------


@quick
@given(st.lists(configs, min_size=3, max_size=3, unique=True), st.sets(st.integers(0, 2)))
def test_tuned_then_another_driver_then_a_neighbour_then_safe(
    three: list[Config], known: set[int]
) -> None:
    rows = [
        best(GEMM, three[0]),
        best(GEMM, three[1], driver="another"),
        best(GEMM.replace(m=256), three[2]),
    ]
    with memory_store() as store:
        for place in known:
            store.set_best(rows[place])
        choice = chooser(store).choose(GEMM)
    found = ("tuned", "older driver", "neighbour")
    first = min(known, default=None)
    assert choice.origin == ("default" if first is None else found[first])
    assert choice.config == (SPECS["gemm"].safe(GEMM, LIMITS) if first is None else three[first])
    assert (choice.fallback is None) == (choice.origin in ("tuned", "neighbour"))


@quick
@given(configs, st.sets(st.sampled_from([64, 128, 256, 512, 4096]), min_size=1))
def test_the_nearest_neighbour(config: Config, sizes: set[int]) -> None:
    others = [c for c in FEASIBLE if c != config]
    with memory_store() as store:
        for size, other in zip(sorted(sizes), [config, *others], strict=False):
            store.set_best(best(GEMM.replace(m=size), other))
        # Neither is one: another weight type, another size that does not vary.
        store.set_best(best(GEMM.replace(n=161), others[-1]))
        store.set_best(best(GEMM.replace(w="q4_1"), others[-1]))
        assert chooser(store).choose(GEMM).config == config


@quick
@given(configs)
def test_an_edited_kernel_is_not_tuned(config: Config) -> None:
    with memory_store() as store:
        for driver in ("mine", "another"):
            store.set_best(best(GEMM, config, driver, digest="of another source"))
        assert chooser(store).choose(GEMM).origin == "default"


@quick
@given(configs, configs)
def test_a_layout_takes_the_quickest_that_reads_it(winner: Config, needed: Config) -> None:
    spec = SPECS["gemm"]
    layout = spec.layout(GEMM, needed)
    fitting = [c for c in FEASIBLE if spec.layout(GEMM, c) == layout]
    with memory_store() as store:
        store.set_best(best(GEMM, winner))
        for place, config in enumerate(fitting[:5]):
            trial = {"workload": str(GEMM), "driver": "mine", "digest": spec.digest()}
            ok = place != 3  # the quickest of all failed
            time = 1e-3 * (9 - place) if ok else None
            status = "ok" if ok else "wrong result"
            store.add_trial(some_trial(**trial, config=str(config), time=time, status=status))
        choice = chooser(store).choose(GEMM, layout)
    assert spec.layout(GEMM, choice.config) == layout
    if spec.layout(GEMM, winner) == layout:
        assert choice.config == winner
    else:
        measured = [c for place, c in enumerate(fitting[:5]) if place != 3]
        assert choice.config == measured[-1]
    assert choice.origin == "tuned"


@quick
@given(configs, st.sampled_from(["buffer", "image"]))
def test_a_forced_kind_is_kept(winner: Config, kind: str) -> None:
    with memory_store() as store:
        for driver in ("mine", "another"):
            store.set_best(best(GEMM, winner, driver))
        store.set_best(best(GEMM.replace(m=256), winner))
        choice = chooser(store, f"gemm={kind}").choose(GEMM)
    assert choice.config.variant == kind
    assert (choice.origin == "tuned") == (winner.variant == kind)


@quick
@given(st.lists(configs, min_size=2, max_size=2, unique=True))
def test_what_was_found_wrong_is_not_chosen_again(two: list[Config]) -> None:
    with memory_store() as store:
        store.set_best(best(GEMM, two[0], driver="another"))
        store.set_best(best(GEMM.replace(m=256), two[1]))
        choosing = chooser(store)
        first = choosing.choose(GEMM)
        choosing.ban(first)
        second = choosing.choose(GEMM)
        choosing.ban(second)
        assert choosing.choose(GEMM).origin == "default"
    assert (first.config, second.config) == tuple(two)


@quick
@given(configs, st.data())
def test_parameters_outside_the_space_are_no_parameters(config: Config, data: Any) -> None:
    """Zero, a negative number, a text, one parameter too many or too few: never used, no error."""
    name, _ = data.draw(st.sampled_from(config.params))
    odd = data.draw(st.sampled_from([0, -1, 3, 5, 1 << 20, 10**30, "x", None]))
    params = {k: v for k, v in {**dict(config.params), name: odd}.items() if v is not None}
    if data.draw(st.booleans()):
        params["ZZ"] = 1
    if Config.of(config.variant, **params) in FEASIBLE:
        return
    with memory_store() as store:
        store.set_best(best(GEMM, Config.of(config.variant, **params)))
        assert chooser(store).choose(GEMM).origin == "default"


# -- --variant -------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("asked", list(product(("", "buffer", "image"), repeat=3)))
def test_readers_of_one_weight_get_one_kind(asked: tuple[str, ...], tied: bool) -> None:
    by_op = {
        op: kind for op, kind in zip(("gemv", "gemm", "embedding"), asked, strict=True) if kind
    }
    shared = {
        op: by_op.get(op) for op in (("gemv", "gemm", "embedding") if tied else ("gemv", "gemm"))
    }
    wanted = set(shared.values()) - {None}
    request = VariantRequest("image", by_op)
    if len(wanted) > 1:
        with pytest.raises(UsageError, match="same weights"):
            together(request, tied)
        return
    result = together(request, tied)
    assert result.default == "image"
    assert {result.by_op.get(op) for op in shared} == (wanted or {None})
    if not tied:
        assert result.by_op.get("embedding") == by_op.get("embedding")


# -- resolving a whole model -----------------------------------------------------------------------


def planner(store: Store, limits: Limits = LIMITS, *variants: str) -> Planner:
    """A planner that can choose, takes what it chose for right, and can do nothing else."""
    loader: Any = SimpleNamespace(require_cache=False)
    nothing: Any = None
    choosing = Chooser(store, "mine", limits, VariantRequest.parse(variants))
    planning = Planner(nothing, loader, choosing, ResidentWeights(nothing, nothing), print)
    planning.verifier = SimpleNamespace(problem=lambda choice: None)  # type: ignore[assignment]
    return planning


@cache
def feasible(workload: Workload) -> list[Config]:
    return SPECS[workload.op].feasible(workload, LIMITS)


def graph(name: str) -> Graph:
    file = GGUFFile.open(clk_engine.model(name))
    config = ModelConfig.from_gguf(file)
    return Graph(config, Weights(file, config), DEFAULT_KV, LIMITS)


@pytest.mark.parametrize("name", clk_engine.MODELS)
@pytest.mark.parametrize("variants", [(), ("image",), ("embedding=image",)])
def test_every_reader_of_a_weight_reads_its_layout(name: str, variants: tuple[str, ...]) -> None:
    """Whatever was tuned: GEMV decides, and look-up and GEMM follow."""
    steps = graph(name)
    decode, prefill = [*steps.body(1, 512), *steps.head()], [*steps.body(32, 512)]
    with memory_store() as store:
        for place, workload in enumerate(dict.fromkeys(s.workload for s in [*decode, *prefill])):
            found = feasible(workload)
            store.set_best(best(workload, found[place * 7919 % len(found)]))
        planning = planner(store, LIMITS, *variants)
        planning.resolve(decode)
        planning.resolve(prefill)
    read: dict[str, set[str | None]] = {}
    for step in [*decode, *prefill]:
        config = planning.choices[step.workload].config
        layout = SPECS[step.workload.op].layout(step.workload, config)
        if layout is not None:
            read.setdefault(step.tensors["w"], set()).add(layout)
        if variants == ("image",) and step.workload.op in ("gemv", "gemm", "embedding"):
            assert config.variant == "image"
    assert {name: {str(layout)} for name, layout in planning.resident.layouts.items()} == read


@pytest.mark.parametrize("name", clk_engine.MODELS)
@pytest.mark.parametrize(("m", "ctx"), [(1, 2048), (32, 512), (256, 8192)])
def test_what_reads_positions_may_read_all_of_the_context(name: str, m: int, ctx: int) -> None:
    """A view as texels ends where the workload's context does."""
    workloads = [step.workload for step in graph(name).body(m, ctx)]
    sizes = {w.op: w.size("ctx") for w in workloads if "ctx" in dict(w.items)}
    assert {*sizes.values()} == {ctx}
    assert m == 1 or "rope" in sizes


def test_a_device_that_cannot_is_told_all_that_it_cannot() -> None:
    steps = graph("llama2/q4_0")
    with (
        memory_store() as store,
        pytest.raises(UnsupportedOperation) as caught,
    ):
        planner(store, Limits("gpu", 1, 0, 1, (1, 1, 1), max_alloc=3000)).resolve(
            [*steps.body(1, 512), *steps.head()]
        )
    message = str(caught.value)
    for op in ("gemv", "embedding", "attention_decode"):
        assert f"{op} " in message
    assert "3000 bytes" in message


def test_nothing_is_verified_where_something_is_missing() -> None:
    """To verify is to allocate: whatever can't run is said before."""
    steps = [*graph("llama2/q4_0").body(1, 512)]
    workload = next(s.workload for s in steps if s.workload.op == "gemv")
    small = Limits("cpu", 2, 1 << 20, 4096, (4096,) * 3, max_alloc=200_000)
    config = SPECS["gemv"].safe(workload, small)
    with memory_store() as store:
        store.set_best(best(workload, config, "another"))
        planning = planner(store, small)

        def verified(choice: object) -> None:
            raise AssertionError(f"{choice} was verified")

        planning.verifier = SimpleNamespace(problem=verified)  # type: ignore[assignment]
        with pytest.raises(UnsupportedOperation, match="run attention_decode of"):
            planning.resolve(steps)


# -- launches --------------------------------------------------------------------------------------


class Recorder:
    """Stands for launch, program and context; a launch takes as long as the clock is told."""

    def __init__(self, log: list[str], name: str, times: list[float], clock: list[float]) -> None:
        self.log, self.name, self.times, self.clock = log, name, times, clock
        self.program = self.context = self
        self.launched = False
        self.status = 0

    def enqueue(self, geometry: Geometry) -> None:
        self.log.append(f"{self.name} {geometry.global_size[-1]}")
        self.clock[0] += self.times.pop(0) if self.times else 1.0

    def prepare(self, geometry: Geometry) -> Callable[[], int]:
        def call() -> int:
            self.enqueue(geometry)
            return self.status

        return call

    def check(self, status: int, geometry: Geometry) -> None:
        if status:
            raise LaunchError(f"{self.name} of {geometry.global_size}: {status}")

    def finish(self) -> None:
        pass


def test_a_plan_runs_every_step_once_and_times_first_launches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log: list[str] = []
    clock = [0.0]
    monkeypatch.setattr("clkiln.inference.plan.time.perf_counter", lambda: clock[0])
    workload = Workload.parse("rmsnorm d=64 eps=1e-05 m=32")
    config = SPECS["rmsnorm"].safe(workload, LIMITS)
    a = Recorder(log, "a", [9.0, 2.0, 2.0], clock)
    b = Recorder(log, "b", [5.0], clock)
    steps = [BoundStep(launch, workload, config) for launch in (a, b, a, a)]  # type: ignore[arg-type]
    seen: dict[int, float] = {}
    plan = Plan(steps, seen)
    for m in (3, 32, 3):
        plan.run(m)
    local = config["LX"]
    assert log == [f"{name} {m * local}" for m in (3, 32, 3) for name in "abaa"]
    assert seen == {id(a): 7.0, id(b): 5.0}
    assert a.launched
    assert b.launched
    # A later plan with the same programs changes nothing: its launches may be of another size.
    Plan(steps, seen).run(32)
    assert seen == {id(a): 7.0, id(b): 5.0}
    # However many sizes prompts have, what is prepared is that of one.
    assert len(plan._calls) == len(steps)
    # The launch that the driver refuses is the one that is named.
    b.status = -5
    with pytest.raises(LaunchError, match=rf"b of \({3 * local},.*: -5"):
        plan.run(3)
