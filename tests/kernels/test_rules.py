"""Bans and pins as data: what they say, what they leave, and what a damaged file makes of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clk_cache import json_values, quick
from clk_run import Limits
from clkiln.kernels import SPECS
from clkiln.kernels.rules import MOST_WRONG, SHARING, Ban, Rules, places
from clkiln.kernels.types import Config, Workload
from clkiln.kernels.variants import VariantRequest

CPU = Limits("cpu", 2, 1 << 20, 4096, (4096,) * 3, 2 << 30, features=frozenset({"images"}))
GPU = Limits("gpu", 16, 48 << 10, 1024, (1024,) * 3, 2 << 30, features=frozenset({"images"}))
WORKLOADS = [Workload.parse(spec.example) for spec in SPECS.values()]
VARIANTS = [(op, variant.name) for op, spec in SPECS.items() for variant in spec.variants]
GEMV = Workload.parse("gemv bias=no fuse=none k=96 n=160 w=q4_0")

limits = st.sampled_from([CPU, GPU])
bans = st.builds(
    Ban, reason=st.text(max_size=9), by=st.sampled_from(["check", "user"]), since=st.just("today")
)  # fmt: skip
rule_sets = st.builds(
    Rules,
    st.dictionaries(st.sampled_from(VARIANTS), bans, max_size=3),
    st.just({}),
    st.lists(st.sampled_from(VARIANTS), max_size=2).map(dict),
)


@quick
@given(rule_sets)
def test_rules_survive_the_file(rules: Rules) -> None:
    assert Rules.of(rules.as_dict()) == rules


@quick
@given(st.fixed_dictionaries(dict.fromkeys(("variants", "configs", "pins"), json_values)))
def test_whatever_the_file_holds_is_rules(data: Any) -> None:
    assert Rules.of(data) == Rules()


def test_what_is_no_more_is_left_out() -> None:
    """Operations and variants that were renamed, and configurations that do not parse."""
    ban = {"reason": "wrong"}
    data = {
        "variants": [{"op": "gone", "variant": "buffer", **ban}, {"op": "gemv", "variant": "x"}],
        "configs": [{"workload": "gemv", "config": "{", **ban}, {"config": "{}"}],
        "pins": {"gemv": "x", "gone": "buffer"},
    }
    assert Rules.of(data) == Rules()


def test_an_edited_kernel_gets_another_chance_and_a_users_ban_stays() -> None:
    old, own = Ban("wrong", "check", "digest of another source"), Ban("mine", "user")
    rules = Rules().ban("gemv", "image", old).ban("gemm", "image", own)
    rules = rules.ban_config(GEMV, Config.of("buffer"), old)
    assert Rules.of(rules.as_dict()) == Rules().ban("gemm", "image", own)
    current = Ban("wrong", "check", SPECS["gemv"].digest())
    assert Rules.of(Rules().ban("gemv", "image", current).as_dict()).variants


def test_taking_back_a_ban_takes_its_configurations_along() -> None:
    config = SPECS["gemv"].safe(GEMV, CPU)
    rules = Rules().ban("gemv", "buffer", Ban("x")).ban_config(GEMV, config, Ban("y"))
    assert rules.unban("gemv", "image") == rules
    assert rules.unban("gemv", "buffer") == Rules()


@quick
@given(rule_sets, st.sampled_from(WORKLOADS), limits)
def test_what_is_left_is_allowed_and_can_run(rules: Rules, workload: Workload, on: Limits) -> None:
    spec = SPECS[workload.op]
    config = rules.safe(workload, on)
    possible = [c for c in spec.feasible(workload, on) if rules.allows(workload, c, on)]
    assert (config in possible) if possible else config is None
    if spec.safe(workload, on) in possible:
        assert config == spec.safe(workload, on), "the default, as long as it may run"
    if config is None:
        assert workload.op in rules.why(workload)


@pytest.mark.parametrize("text", [str(GEMV), "rmsnorm d=576 eps=1e-05 m=1", "argmax n=5000"])
def test_wrong_configurations_are_followed_by_other_ones_up_to_a_limit(text: str) -> None:
    """Each next one differs from all that were wrong; then it is the kernel that is wrong."""
    workload, rules = Workload.parse(text), Rules()
    seen: list[Config] = []
    while (config := rules.safe(workload, GPU)) is not None:
        assert config not in seen
        seen.append(config)
        rules = rules.ban_config(workload, config, Ban("wrong"))
    assert len(seen) == MOST_WRONG
    assert seen[0] == SPECS[workload.op].safe(workload, GPU)
    values = [{*config.params, config.variant} for config in seen]
    assert len(values[0] & values[1]) <= 1, "the second try has next to nothing of the first"
    # Another shape of the operation is not concerned.
    other = workload.replace(**{"n" if "n" in dict(workload.items) else "d": 4096})
    assert rules.safe(other, GPU) == SPECS[workload.op].safe(other, GPU)


def test_a_banned_conversion_takes_along_what_needs_it() -> None:
    """As long as a variant of it is left, nothing is."""
    workload = Workload.parse("gemv bias=no fuse=none k=64 n=64 w=q4_0")
    on = Limits("cpu", features=frozenset({"images", "image_buffers"}))
    images = SPECS["gemv"].feasible(workload, on, "image")
    rules, (first, second) = Rules(), (variant.name for variant in SPECS["to_image"].variants)
    rules = rules.ban("to_image", first, Ban("wrong"))
    assert all(rules.allows(workload, config) for config in images)
    rules = rules.ban("to_image", second, Ban("wrong"))
    left = [config for config in images if rules.allows(workload, config)]
    assert left and left == [config for config in images if config["XM"] != 2]
    for config in sorted(set(images) - set(left), key=str)[::7]:
        assert rules.safe(workload, on, kind="image", also=lambda c, it=config: c == it) is None


@pytest.mark.parametrize("way", ["configurations", "no image buffers", "no whole texels"])
def test_a_conversion_that_can_not_run_here_is_no_conversion(way: str) -> None:
    """Whatever is left of its variants: what reads the tensor itself runs in its place."""
    workload = Workload.parse("gemv bias=no fuse=none k=64 n=64 w=q4_0")
    on = Limits("cpu", features=frozenset({"images", "image_buffers"}))
    rules = Rules().pin("gemv", "image")
    if way == "configurations":
        conversion = Workload.parse("to_image k=64 m=1")
        while (config := rules.safe(conversion, on)) is not None:
            rules = rules.ban_config(conversion, config, Ban("wrong"))
    else:
        rules = rules.ban("to_image", "image", Ban("wrong"))
    if way == "no image buffers":
        on = replace(on, features=frozenset({"images"}))
    if way == "no whole texels":
        workload = workload.replace(k=66, w="f16")
    images = SPECS["gemv"].feasible(workload, on, "image")
    left = [config for config in images if rules.allows(workload, config, on)]
    assert len(left) < len(images)
    assert left == [config for config in images if config["XM"] != 2]
    reading = next(config for config in images if config["XM"] == 2)
    for banned in left[:2]:
        rules = rules.ban_config(workload, banned, Ban("wrong"))
    assert (found := rules.safe(workload, on)) is not None and found["XM"] != 2
    assert rules.safe(workload, on, also=lambda config: config == reading) is None


def test_what_was_asked_for_goes_before_a_pin_and_not_before_a_ban() -> None:
    rules = Rules().pin("gemv", "image").pin("rope", "buffer").ban("gemm", "image", Ban("x"))
    under = rules.under(VariantRequest.parse(["buffer"]))
    assert under.pins == {"rope": "buffer"} and under.variants == rules.variants
    assert rules.under(VariantRequest.parse(["gemv=image"])) == rules
    assert rules.under(VariantRequest()) == rules


def test_where_a_weight_may_lie() -> None:
    assert places(Rules(), CPU, SHARING) == {"buffer", "image2d"}
    assert places(Rules(), Limits("gpu", features=frozenset()), SHARING) <= {"buffer"}
    no_image = Rules().ban("embedding", "image", Ban("x"))
    assert places(no_image, CPU, SHARING) == {"buffer"}
    assert places(no_image.pin("gemv", "image"), CPU, SHARING) == set()
    assert places(Rules().pin("gemm", "tiled"), CPU, ["gemm"]) == set(), "no tiles on a CPU"
