"""A context that the device can't run is known at the start: by its limits, by bans and pins."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import clk_engine
from clk_abilities import logits, pretending, refused
from clk_cache import write_rules
from clk_run import Limits
from clkiln.api import TuningJob
from clkiln.cache.store import Store
from clkiln.errors import ContextLengthError
from clkiln.inference.abilities import Abilities
from clkiln.kernels.rules import Ban, Rules
from clkiln.kernels.types import Workload
from clkiln.kernels.variants import VariantRequest
from clkiln.runtime.device import Device
from clkiln.tuner.session import TuningRun

#: A cache row of the small model takes 128 bytes, and no other tensor is as large.
LARGEST, FITTING = 170_000, 170_000 // 128


@pytest.fixture
def long_model(tmp_path: Path) -> Path:
    return clk_engine.variation(tmp_path / "long.gguf", context=4096)


def test_a_context_ends_where_attention_does(long_model: Path) -> None:
    """No later bucket of contexts surprises a run: the limit is known at the start."""
    warnings: list[str] = []
    device = pretending(max_alloc=LARGEST)
    with clk_engine.engine(long_model) as engine:
        expected = logits(engine, 600, FITTING - 600)
        assert engine.runner.shortened == ""
        assert engine.runner.limit == 4096
    with clk_engine.engine(long_model, device, warn=warnings.append) as engine:
        assert engine.runner.limit == FITTING
        found = logits(engine, 600, FITTING - 600)
        with pytest.raises(ContextLengthError, match=str(FITTING)):
            engine.runner.feed([5])
        [line] = [line for line in engine.fallbacks() if line.startswith("context: ")]
    for got, want in zip(found, expected, strict=True):
        assert clk_engine.relative_error(got, want) < 1e-4
    assert re.match(rf"context: {FITTING} positions at most.*_cache \d+ > {LARGEST} bytes", line)
    assert any(text.startswith(f"the context is {FITTING} positions") for text in warnings)


def test_a_context_that_was_asked_for_has_to_run(long_model: Path, taken: list[str]) -> None:
    device = pretending(max_alloc=LARGEST)
    with refused(taken, path=long_model, device=device, ctx_size=4096) as (headline, line):
        assert headline.endswith("can't run a context of 4096 positions")
        assert f"> {LARGEST} bytes" in line
        assert line.endswith(f"nearest that runs: --ctx-size {FITTING}")
    with clk_engine.engine(long_model, device, ctx_size=FITTING) as engine:
        assert (engine.runner.limit, engine.runner.shortened) == (FITTING, "")
    half = device.info.max_alloc // 64
    with clk_engine.engine(long_model, device, kv_dtype="f16") as engine:
        assert engine.runner.limit == half


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 300_000), st.integers(0, 300_000))
def test_the_longest_context(limit: int, most: int) -> None:
    """Against what it has to be, whatever bucket it falls into."""
    device = Limits(max_alloc=max(most * 8, 500))

    def workloads(ctx: int) -> list[Workload]:
        return [Workload.of("attention_decode", ctx=ctx, heads=1, kv_heads=1, head_dim=2, kv="f32")]

    able = Abilities(device, VariantRequest(), "it")
    longest, broken = able.longest_context(workloads, limit)
    fitting = device.max_alloc // 8
    assert longest == min(limit, fitting)
    if longest < limit:
        assert broken is not None
        assert f"> {device.max_alloc} bytes" in broken.reason
        assert broken.workload.size("ctx") > fitting
    if broken is None:
        assert longest == limit


# -- bans and pins ---------------------------------------------------------------------------------

#: Texels of an image buffer, 8 of which a position takes: 600 of them, and no bucket of 2048.
TEXELS = 8 * 600
FORCED = {
    "ban": Rules().ban("attention_decode", "buffer", Ban("found to be wrong")),
    "pin": Rules().pin("attention_decode", "image"),
}
SAID = {
    "ban": "attention_decode=buffer is banned for this driver (found to be wrong)",
    "pin": "attention_decode=image is pinned for this driver",
}


def ruled(path: Path, device: Device, rules: Rules) -> Path:
    """A cache file with ``rules`` for the driver of ``device``."""
    with Store.open(path) as store:
        write_rules(store, device.info.driver_key, rules)
    return path


@pytest.mark.parametrize("how", FORCED)
def test_what_rules_leave_bounds_the_context(
    long_model: Path, tmp_path: Path, taken: list[str], how: str
) -> None:
    """It is known at the start, and not where the variant that is left ends."""
    device = pretending(image_max_buffer_size=TEXELS)
    cache = ruled(tmp_path / "cache.sqlite", device, FORCED[how])
    with refused(taken, path=long_model, device=device, cache=cache, ctx_size=601) as (_, line):
        assert f"image buffer {8 * 601} > {TEXELS} texels, and {SAID[how]}" in line
        assert line.endswith("nearest that runs: --ctx-size 600")
    with clk_engine.engine(long_model) as engine:
        expected = logits(engine, 599, 1)
    warnings: list[str] = []
    with clk_engine.engine(long_model, device, cache=cache, warn=warnings.append) as engine:
        assert engine.runner.limit == 600
        found = logits(engine, 599, 1)
        with pytest.raises(ContextLengthError, match="600"):
            engine.runner.feed([5])
    for got, want in zip(found, expected, strict=True):
        assert clk_engine.relative_error(got, want) < 1e-4
    [line] = [text for text in warnings if text.startswith("the context is 600 positions")]
    assert SAID[how] in line
    assert f"{SAID[how]}: clkiln cache rules lists them" in line


@pytest.mark.parametrize("how", FORCED)
def test_contexts_that_rules_leave_nothing_of_are_not_tuned(
    long_model: Path, tmp_path: Path, how: str
) -> None:
    device = pretending(image_max_buffer_size=TEXELS)
    cache = ruled(tmp_path / "cache.sqlite", device, FORCED[how])
    with TuningJob(long_model, device, cache) as job:
        contexts = {
            use.workload.size("ctx") for use in job.uses if use.workload.op == "attention_decode"
        }
        assert contexts == {128, 512}
        run = TuningRun(job.store, device.info, job.uses, job.level)
    for task in run.tasks:
        if task.workload.op == "attention_decode":
            assert {config.variant for config in task.search.feasible or ()} == {"image"}
