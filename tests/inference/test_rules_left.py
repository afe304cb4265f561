"""What bans and pins leave of a model: contexts, kinds, hints, and what a check may ban at all."""

from __future__ import annotations

import pytest

from clk_run import Limits
from clkiln.errors import UnsupportedOperation
from clkiln.inference.abilities import Abilities
from clkiln.inference.check import rule_out
from clkiln.inference.findings import Fault
from clkiln.kernels import SPECS
from clkiln.kernels.rules import SHARING, Ban, Rules
from clkiln.kernels.types import Workload
from clkiln.kernels.variants import VariantRequest

FLOATS = [Workload.parse(f"gemv bias=no fuse=none k=64 n={n} w=f32") for n in (64, 96)]
IMAGES = Limits(features=frozenset({"images", "image_buffers"}))
DECODE = Workload.of("attention_decode", ctx=2048, heads=1, kv_heads=1, head_dim=8, kv="f32")


@pytest.mark.parametrize("ctx", [2048, 1024])
def test_what_is_wrong_for_a_context_is_no_more_right_for_a_part_of_it(ctx: int) -> None:
    """For a bucket, or for where a device's limits end all contexts."""
    rules, on = Rules(), Limits(max_alloc=32 * ctx)
    wrong = DECODE.replace(ctx=ctx)
    while (config := rules.safe(wrong, on)) is not None:
        rules = rules.ban_config(wrong, config, Ban("off by one"))
    able = Abilities(on, VariantRequest(), "Acme 1000", rules)
    longest, why = able.longest_context(lambda ctx: [DECODE.replace(ctx=ctx)], 8192)
    assert why is not None and "is banned for this driver (off by one)" in why.reason
    assert longest == 512
    [line] = able.refusal(able.missing([wrong])).details
    assert "at most" not in line, "nor is that a hint"


def test_a_hint_names_nothing_that_is_banned() -> None:
    rules = Rules().ban("gemv", "buffer", Ban("wrong"))
    on, asked = IMAGES, VariantRequest.parse(["gemv=buffer"])
    for both, hint in ((False, "--variant gemv=image"), (True, "nothing near it runs here")):
        left = rules.ban("gemv", "image", Ban("too")) if both else rules
        with pytest.raises(UnsupportedOperation) as caught:
            Abilities(on, asked, "Acme 1000", left).able([FLOATS[0]])
        [line] = caught.value.details
        assert "as buffer: gemv=buffer is banned for this driver (wrong)" in line
        assert ("gemv=image is banned" in line) == both
        assert hint in line


def test_a_kind_that_is_banned_falls_back_as_one_that_can_not_run() -> None:
    rules = Rules().ban("gemv", "image", Ban("wrong"))
    on = IMAGES
    able = Abilities(on, VariantRequest.parse(["image"]), "Acme 1000", rules)
    assert able.kind(FLOATS[0]) is None
    [line] = able.unmet(FLOATS)
    assert line.startswith("gemv: can't run as image here: gemv=image is banned for this driver")
    by_name = Abilities(on, VariantRequest.parse(["gemv=image"]), "Acme 1000", rules)
    with pytest.raises(UnsupportedOperation, match=r"as image: gemv=image is banned .*=buffer"):
        by_name.able([FLOATS[0]])


# -- what a check may ban --------------------------------------------------------------------------

#: Of these an image buffer holds the first two contexts.
CONTEXTS = [DECODE.replace(ctx=ctx) for ctx in (128, 2048, 65536)]


def fault(workload: Workload, variant: str = "buffer") -> Fault:
    config = next(c for c in SPECS[workload.op].feasible(workload, IMAGES) if c.variant == variant)
    return Fault(workload, config, "layer 0", "wrong", "off by one")


@pytest.mark.parametrize("known", range(4))
def test_a_variant_is_banned_if_others_can_run_all_that_the_model_has(known: int) -> None:
    """A longer context than the image variant can run is of the model, too."""
    wrong = fault(CONTEXTS[0])
    rules, what = rule_out(Rules(), wrong, IMAGES, SHARING, None, CONTEXTS[:known])
    if known < 3:
        assert what == "attention_decode=buffer" and list(rules.variants)
        return
    assert what == f"{CONTEXTS[0]} {wrong.config}"
    assert rules.configs.keys() == {(CONTEXTS[0], wrong.config)} and not rules.variants
    able = Abilities(IMAGES, VariantRequest(), "Acme 1000", rules)
    assert able.able(CONTEXTS) == set(CONTEXTS)


def test_what_can_not_run_already_keeps_no_ban_away() -> None:
    workloads = [*CONTEXTS[:2], DECODE.replace(ctx=1 << 27), Workload.of("add", d=1 << 30, m=1)]
    _, what = rule_out(Rules(), fault(CONTEXTS[0]), IMAGES, SHARING, None, workloads)
    assert what == "attention_decode=buffer"
