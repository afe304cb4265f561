"""A device that can't run all of a model: it is named before anything is allocated."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import clk_engine
from clk_abilities import logits, pretending, refused
from clk_run import Limits
from clkiln.errors import UnsupportedOperation
from clkiln.inference.abilities import Abilities
from clkiln.inference.engine import Engine
from clkiln.kernels import SPECS
from clkiln.kernels.types import Config, Workload
from clkiln.kernels.variants import VariantRequest
from clkiln.runtime.memory import MemoryBudget

#: What a device without images reports.
NO_IMAGES: dict[str, Any] = {
    "images": False, "image2d_max_width": 0, "image2d_max_height": 0, "image_max_buffer_size": 0,
    "features": frozenset(),
}  # fmt: skip


# -- a device runs it right, or says what it lacks -------------------------------------------------

SMALLER: dict[str, dict[str, Any]] = {
    "little local memory": {"local_memory": 512},
    "one item": {"max_work_group_size": 1, "max_work_item_sizes": (1, 1, 1)},
    "a small gpu": {
        "type": "gpu", "local_memory": 512, "max_work_group_size": 3,
        "max_work_item_sizes": (3, 2, 1), **NO_IMAGES,
    },
    "images of nothing": {"image2d_max_width": 0, "image2d_max_height": 0},
}  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("name", SMALLER)
def test_a_smaller_device_is_right(name: str) -> None:
    with clk_engine.engine() as engine:
        expected = logits(engine, 1, 20, 40)
    device = pretending(**SMALLER[name])
    with clk_engine.engine(device=device) as engine:
        found = logits(engine, 1, 20, 40)
        for workload, choice in engine.runner.planner.choices.items():
            spec = SPECS[workload.op]
            assert spec.check(workload, choice.config, device.info) is None, workload
    for got, want in zip(found, expected, strict=True):
        assert clk_engine.relative_error(got, want) < 1e-4


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 300_000),
    st.sampled_from([0, 256, 32 << 10]),
    st.sampled_from([1, 3, 4096]),
    st.sampled_from(["cpu", "gpu"]),
    st.sampled_from([(), ("image",), ("buffer",), ("gemv=image",)]),
)
@pytest.mark.long
def test_any_device_is_right_or_says_what_is_missing(
    largest: int, local: int, items: int, kind: str, variant: tuple[str, ...]
) -> None:
    device = pretending(
        max_alloc=largest, local_memory=local, max_work_group_size=items, type=kind,
        max_work_item_sizes=(items,) * 3,
    )  # fmt: skip
    budgets: list[MemoryBudget] = []
    make = MemoryBudget.__init__

    def noted(self: MemoryBudget, *options: Any) -> None:
        budgets.append(self)
        make(self, *options)

    with clk_engine.engine() as engine:
        expected = logits(engine, 1, 40)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MemoryBudget, "__init__", noted)
        try:
            with clk_engine.engine(device=device, variant=variant) as engine:
                found = logits(engine, 1, 40)
        except UnsupportedOperation as error:
            assert error.details
            assert budgets[0].used == 0
            return
    for got, want in zip(found, expected, strict=True):
        assert clk_engine.relative_error(got, want) < 1e-4


def test_all_that_is_missing_is_named_before_anything_is_allocated(taken: list[str]) -> None:
    """Of prompts as well, though decoding can't run either."""
    with refused(taken, device=pretending(max_alloc=1900)) as (headline, *lines):
        for op in ("argmax", "embedding", "gemm", "attention_prefill", "rmsnorm", "rope"):
            assert op in headline
            of_op = [line for line in lines if line.startswith(f"{op} ")]
            assert of_op and all(re.search(r": \w.*\d+ > 1900 bytes", line) for line in of_op)


def test_what_no_configuration_gets_below_is_named(taken: list[str]) -> None:
    """A norm in front of a product holds the normed vector in local memory: 96 floats of it."""
    with refused(taken, device=pretending(local_memory=256)) as (headline, line):
        assert headline.endswith("can't run gemv of this model")
        assert " and 1 like it: local memory 388 > 256 bytes; nothing near it runs here" in line


# -- forced variants -------------------------------------------------------------------------------


def test_a_kind_asked_of_all_falls_back_and_says_why() -> None:
    warnings: list[str] = []
    with clk_engine.engine(
        device=pretending(**NO_IMAGES), variant=["image"], warn=warnings.append
    ) as engine:
        engine.runner.feed(clk_engine.prompt(3, 515))
        choices = engine.runner.planner.choices
        assert {
            SPECS[workload.op].variant(choice.config.variant).kind
            for workload, choice in choices.items()
        } == {"buffer"}
        lines = [line for line in engine.fallbacks() if "image" in line]
    said = {line.split(":")[0]: line for line in lines}
    for op in {workload.op for workload in choices}:
        needs = {n for v in SPECS[op].variants if v.kind == "image" for n in v.requires}
        assert all(f"can't run as image here: needs {need}" in said[op] for need in needs)
        assert needs, f"{op} has image variants that need nothing"
    [warning] = [text for text in warnings if text.startswith("not as asked: ")]
    assert all(line in warning for line in lines)


@pytest.mark.long
def test_a_context_longer_than_an_image_buffer_is_read_from_buffers() -> None:
    """And shorter ones from images still, of a KV cache that is longer than they may be."""

    def answers(engine: Engine) -> list[np.ndarray]:
        found = []
        for tokens in ([7], clk_engine.prompt(130, 515)):
            engine.runner.reset()
            engine.runner.feed(tokens)
            engine.runner.feed([7])
            found.append(engine.runner.logits())
        return found

    with clk_engine.engine(variant=["buffer"]) as engine:
        expected = answers(engine)
    # A row of a cache is 8 texels: 128 positions fit, and 512 do not.
    short = pretending(image_max_buffer_size=2000)
    with clk_engine.engine(device=short, variant=["image"]) as engine:
        got = answers(engine)
        assert engine.runner.planner.tensors["blk.0.k_cache"].nbytes > 16 * 2000
        kinds = {
            (workload.op, workload.size("ctx")): choice.config.variant
            for workload, choice in engine.runner.planner.choices.items()
            if workload.op == "attention_decode"
        }
        assert kinds == {("attention_decode", 128): "image", ("attention_decode", 512): "buffer"}
        [line] = [line for line in engine.fallbacks() if line.startswith("attention_decode: ")]
        assert line.startswith("attention_decode: can't run as image here: k_cache image buffer")
    for one, other in zip(got, expected, strict=True):
        assert clk_engine.relative_error(one, other) < 1e-5


def test_a_kind_asked_of_one_operation_has_to_run(taken: list[str]) -> None:
    device = pretending(**NO_IMAGES)
    with refused(taken, device=device, variant=["gemv=image"]) as (headline, *lines):
        # Whatever reads the same weights was asked for with it.
        for op in ("gemv", "gemm", "embedding"):
            assert op in headline
            [line] = [line for line in lines if line.startswith(op)]
            assert line.endswith(
                f", as image: needs images; nearest that runs: --variant {op}=buffer"
            )
    with clk_engine.engine(device=device, variant=["image", "gemv=buffer"]) as engine:
        assert not [line for line in engine.fallbacks() if line.startswith("gemv: can't")]


# -- what to do instead ----------------------------------------------------------------------------

FLOATS = [Workload.parse(f"gemv bias=no fuse=none k=64 n={n} w={w}") for n in (64, 96)
          for w in ("f32", "f16")]  # fmt: skip


@pytest.mark.parametrize(
    ("workloads", "largest", "hint"),
    [
        (FLOATS, 7000, "nearest that runs: --quantize q8_0"),
        (FLOATS, 5000, "nearest that runs: --quantize q4_0"),
        (FLOATS, 500, "nothing near it runs here"),
        # Columns that are no whole blocks can't be quantised.
        ([FLOATS[0].replace(k=70)], 10_000, "nothing near it runs here"),
        ([FLOATS[0].replace(w="q8_0")], 3000, "nearest that runs: weights in q"),
        (
            [Workload.of("attention_decode", ctx=64, heads=1, kv_heads=1, head_dim=8, kv="f32")],
            1024, "nearest that runs: --kv-dtype f16",
        ),
    ],
)  # fmt: skip
def test_hints_are_options_that_help(workloads: list[Workload], largest: int, hint: str) -> None:
    able = Abilities(Limits(max_alloc=largest), VariantRequest(), "Acme 1000")
    missing = able.missing(workloads)
    assert missing
    error = able.refusal(missing)
    assert all(hint in line for line in error.details), error.details
    coding = hint.partition("--quantize ")[2]
    if coding:
        others = [workload.replace(w=coding) for workload in workloads]
        assert all(isinstance(able.capabilities.find(other), Config) for other in others)


def test_operations_alike_share_a_line() -> None:
    able = Abilities(Limits(max_alloc=500), VariantRequest(), "Acme 1000")
    error = able.refusal(able.missing([*FLOATS, Workload.of("add", d=200, m=1)]))
    assert error.headline == "Acme 1000 can't run gemv and add of this model"
    gemv, add = error.details
    assert gemv.startswith(f"{FLOATS[0]} and 3 like it: w.q 8192-24576 > 500 bytes")
    assert add.startswith("add d=200 m=1: x 800 > 500 bytes (largest allocation); ")
    assert "\n" not in str(error)
