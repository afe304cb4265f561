"""Bans and pins of a cache file are honoured by whatever chooses for a model."""

from __future__ import annotations

import json
from functools import cache
from itertools import combinations
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import clk_engine
from clk_cache import memory_store, quick, some_best, some_trial, write_rules
from clk_run import Limits
from clkiln.cache.rows import BestRow
from clkiln.cache.store import Store
from clkiln.errors import UnsupportedOperation
from clkiln.inference.choose import Chooser, together
from clkiln.inference.config import ModelConfig
from clkiln.inference.gguf import GGUFFile
from clkiln.inference.graph import Graph
from clkiln.inference.kv_cache import DEFAULT_KV
from clkiln.inference.plan import Planner
from clkiln.inference.resident import ResidentWeights
from clkiln.inference.weights import Weights
from clkiln.kernels import SPECS
from clkiln.kernels.rules import SHARING, Ban, Rules, places
from clkiln.kernels.types import Config, Workload
from clkiln.kernels.variants import VariantRequest

LIMITS = Limits("cpu", 2, 1 << 20, 4096, (4096,) * 3, features=frozenset({"images"}))
GEMV = Workload.parse("gemv bias=no fuse=none k=96 n=160 w=q4_0")
BUFFER = SPECS["gemv"].feasible(GEMV, LIMITS, "buffer")
IMAGE = SPECS["gemv"].feasible(GEMV, LIMITS, "image")
WRONG = Ban("wrong", "check", SPECS["gemv"].digest())


def chooser(store: Store, rules: Rules, *variants: str) -> Chooser:
    write_rules(store, "mine", rules)
    return Chooser(store, "mine", LIMITS, VariantRequest.parse(variants))


def best(workload: Workload, config: Config, **changes: Any) -> BestRow:
    digest = SPECS[workload.op].digest()
    row = some_best(workload=str(workload), driver="mine", digest=digest, config=str(config))
    return some_best(**{**vars(row), **changes})


def test_a_banned_winner_gives_way_to_the_runner_up() -> None:
    with memory_store() as store:
        digest = SPECS["gemv"].digest()
        for place, config in enumerate((IMAGE[3], IMAGE[4], BUFFER[7], BUFFER[9])):
            row = {"workload": str(GEMV), "driver": "mine", "digest": digest}
            store.add_trial(some_trial(**row, config=str(config), time=1e-3 * (place + 1)))
        store.set_best(best(GEMV, IMAGE[3]))
        rules = Rules()
        assert chooser(store, rules).choose(GEMV).config == IMAGE[3]
        one = rules.ban_config(GEMV, IMAGE[3], WRONG)
        assert chooser(store, one).choose(GEMV).config == IMAGE[4]
        whole = rules.ban("gemv", "image", WRONG)
        choice = chooser(store, whole).choose(GEMV)
        assert (choice.config, choice.origin) == (BUFFER[7], "tuned")
        assert chooser(store, rules.pin("gemv", "buffer")).choose(GEMV).config == BUFFER[7]


def test_rules_are_a_drivers_own() -> None:
    with memory_store() as store:
        write_rules(store, "another", Rules().ban("gemv", "buffer", WRONG))
        found = Chooser(store, "mine", LIMITS, VariantRequest()).choose(GEMV)
    assert found.config == SPECS["gemv"].safe(GEMV, LIMITS)


def test_nothing_borrowed_is_banned() -> None:
    """Not from another driver, and not from another shape."""
    rules = Rules().ban("gemv", "image", WRONG)
    with memory_store() as store:
        store.set_best(best(GEMV, IMAGE[3], driver="older"))
        store.set_best(best(GEMV.replace(n=161), IMAGE[5]))
        choice = chooser(store, rules).choose(GEMV)
        assert (choice.origin, choice.config.variant) == ("default", "buffer")
        store.set_best(best(GEMV.replace(n=161), BUFFER[5]))
        choice = chooser(store, rules).choose(GEMV)
    assert (choice.origin, choice.config) == ("similar", BUFFER[5])


def test_what_reads_an_image_that_nothing_makes_is_not_chosen() -> None:
    """The variant of the conversion that is left needs image buffers, which are not there."""
    reading, other = (next(c for c in IMAGE if c["XM"] == form) for form in (2, 0))
    rules = Rules().ban("to_image", "image", Ban("wrong"))
    with memory_store() as store:
        for place, config in enumerate((reading, other)):
            row = {"workload": str(GEMV), "driver": "mine", "digest": SPECS["gemv"].digest()}
            store.add_trial(some_trial(**row, config=str(config), time=1e-3 * (place + 1)))
        store.set_best(best(GEMV, reading))
        assert chooser(store, Rules()).choose(GEMV).config == reading
        choice = chooser(store, rules).choose(GEMV)
    assert (choice.config, choice.origin) == (other, "tuned")


def test_what_has_nothing_left_is_named_with_the_reason() -> None:
    workload = Workload.parse("rmsnorm d=576 eps=1e-05 m=1")
    rules = Rules()
    for variant in SPECS["rmsnorm"].variants:
        rules = rules.ban("rmsnorm", variant.name, Ban("off by one"))
    with memory_store() as store, pytest.raises(UnsupportedOperation) as caught:
        chooser(store, rules).choose(workload)
    assert "rmsnorm=buffer is banned for this driver (off by one)" in str(caught.value)
    with memory_store() as store, pytest.raises(UnsupportedOperation, match="as image: gemv=image"):
        chooser(store, Rules().ban("gemv", "image", WRONG), "gemv=image").choose(GEMV)


def test_a_pin_goes_behind_the_command_line() -> None:
    with memory_store() as store:
        rules = Rules().pin("gemv", "image")
        assert chooser(store, rules).choose(GEMV).config.variant == "image"
        assert chooser(store, rules, "gemv=buffer").choose(GEMV).config.variant == "buffer"


@cache
def graph(name: str) -> Graph:
    file = GGUFFile.open(clk_engine.model(name))
    config = ModelConfig.from_gguf(file)
    return Graph(config, Weights(file, config), DEFAULT_KV, LIMITS)


#: Each example writes a file's worth of rows.
few = settings(quick, max_examples=12)
WEIGHTED = [(op, name) for op in SHARING for name in ("buffer", "image")]
RULES = [
    rules
    for count in (1, 2)
    for chosen in combinations(
        [(kind, *each) for kind in ("ban", "pin") for each in WEIGHTED], count
    )
    if (
        rules := Rules(
            {(op, name): WRONG for kind, op, name in chosen if kind == "ban"},
            {},
            {op: name for kind, op, name in chosen if kind == "pin"},
        )
    )
]


@cache
def feasible(workload: Workload) -> list[Config]:
    return SPECS[workload.op].feasible(workload, LIMITS)


@pytest.mark.parametrize("name", ["smollm2/q4_1", "llama2/q4_0"])
@few
@given(st.sampled_from(RULES), st.integers(0, 1 << 30))
def test_readers_of_a_weight_stay_in_one_layout(name: str, rules: Rules, seed: int) -> None:
    """Whatever was tuned, banned and pinned: one layout for all that read a weight, or an error."""
    steps = graph(name)
    decode, prefill = [*steps.body(1, 512), *steps.head()], [*steps.body(32, 512)]
    with memory_store() as store:
        # A check's ban holds for the kernel's own source.
        variants = {(op, v): Ban("wrong", "check", SPECS[op].digest()) for op, v in rules.variants}
        write_rules(store, "mine", Rules(variants, {}, rules.pins))
        for place, workload in enumerate(dict.fromkeys(s.workload for s in [*decode, *prefill])):
            found = feasible(workload)
            store.set_best(best(workload, found[(seed + place * 7919) % len(found)]))
        nothing: Any = None
        choosing = Chooser(store, "mine", LIMITS, together(VariantRequest(), True))
        loader: Any = SimpleNamespace(require_cache=False)
        planning = Planner(nothing, loader, choosing, ResidentWeights(nothing, nothing), print)
        planning.verifier = SimpleNamespace(problem=lambda choice: None)  # type: ignore[assignment]
        try:
            planning.resolve(decode, prefill)
            planning.resolve(prefill)
        except UnsupportedOperation as error:
            ops = SHARING if name.startswith("smollm2") else SHARING[:2]
            alone = places(choosing.rules, LIMITS, ["embedding"])
            assert not places(choosing.rules, LIMITS, ops) or not alone
            assert "for this driver" in str(error)
            return
    read: dict[str, set[str | None]] = {}
    for step in [*decode, *prefill]:
        config = planning.choices[step.workload].config
        assert choosing.rules.allows(step.workload, config, LIMITS)
        layout = SPECS[step.workload.op].layout(step.workload, config)
        if layout is not None:
            read.setdefault(step.tensors["w"], set()).add(layout)
    assert {name: {str(layout)} for name, layout in planning.resident.layouts.items()} == read


def test_rules_are_plain_json() -> None:
    rules = (
        Rules().ban("gemv", "image", WRONG).ban_config(GEMV, BUFFER[0], WRONG).pin("add", "buffer")
    )
    assert Rules.of(json.loads(json.dumps(rules.as_dict()))) == rules
