"""Variants that read their inputs as RGBA texels, on every CPU device that compiles."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from clk_cases import seeds
from clk_run import Limits, Runner
from clk_shapes import random_workload
from clkiln.kernels import SPECS
from clkiln.kernels.feasible import MOST_TEXELS
from clkiln.kernels.sizes import WIDTHS
from clkiln.kernels.texels import BUFFER_AND_TEXELS, TEXELS, vector_widths
from clkiln.kernels.types import Config, Workload

OPS = [op for op, spec in SPECS.items() if spec.variants == BUFFER_AND_TEXELS]
LIMITS = Limits(features=TEXELS.requires, max_alloc=1 << 50, image_max_buffer_size=65536)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("seed", seeds(2, 20))
def test_random_shapes(any_runner: Runner, op: str, seed: int) -> None:
    """Inputs are those of the spec: a KV cache is NaN behind the last position."""
    rng = np.random.default_rng(seed)
    spec, workload = SPECS[op], random_workload(op, rng)
    feasible = spec.feasible(workload, any_runner.limits, "image")
    if not TEXELS.requires <= any_runner.limits.features:
        assert not feasible, "without image buffers there are no texels to see"
        return
    config = feasible[rng.integers(len(feasible))]
    any_runner.check(spec, workload, config, spec.inputs(workload, rng))


@pytest.mark.parametrize("op", OPS)
def test_only_inputs_are_seen_as_texels(op: str) -> None:
    """An image is read or written, never both, and a state is no texel."""
    spec, workload = SPECS[op], random_workload(op, np.random.default_rng(0))
    config = next(spec.space(workload, "image"))
    seen = {a.name: a.memory for a in spec.arguments(workload, config)}
    roles = {a.name: a.role for a in spec.arguments(workload, config)}
    assert {name for name, memory in seen.items() if memory == "image1d"} == {
        name for name, role in roles.items() if role == "input"
    }
    other = next(spec.space(workload, "buffer"))
    assert {a.memory for a in spec.arguments(workload, other)} == {"buffer"}


def test_vectors_begin_at_texels() -> None:
    """A width divides every row, and is a texel's at least where one does."""
    for rows in product(range(1, 70), (8, 12)):
        widths = vector_widths(TEXELS, *rows)
        assert widths and all(row % width == 0 for row in rows for width in widths)
        whole = all(row % 4 == 0 for row in rows)
        assert min(widths) >= 4 if whole else max(widths) < 4
    assert vector_widths(BUFFER_AND_TEXELS[0], 67) == WIDTHS


@pytest.mark.parametrize("kv", ["f16", "f32"])
@pytest.mark.parametrize("op", ["attention_decode", "attention_prefill"])
def test_a_context_is_as_long_as_an_image_buffer(op: str, kv: str) -> None:
    """Four numbers to a texel, of either size."""
    longest = 65536 * 4 // (3 * 64)
    workload = Workload.of(op, heads=9, kv_heads=3, head_dim=64, kv=kv, ctx=longest, m=1)
    spec = SPECS[op]
    config = spec.safe_of_kind(workload, LIMITS, "image")
    assert config is not None and config.variant == "image"
    assert spec.safe_of_kind(workload.replace(ctx=longest + 1), LIMITS, "image") is None
    broken = spec.check(workload.replace(ctx=longest + 1), config, LIMITS)
    assert broken is not None and broken.reason.startswith("k_cache image buffer 65")


def test_elements_are_counted_in_an_int() -> None:
    """However long an image buffer may be."""
    limits = Limits(
        features=TEXELS.requires, max_alloc=1 << 50, image_max_buffer_size=4 * MOST_TEXELS
    )
    spec, config = SPECS["argmax"], Config.of("image", LX=1, V=4)
    fits = Workload.of("argmax", n=4 * MOST_TEXELS)
    assert spec.check(fits, config, limits) is None
    assert spec.check(fits.replace(n=4 * MOST_TEXELS + 1), config, limits) is not None


@pytest.mark.parametrize("op", OPS)
def test_a_forced_image_keeps_the_safe_parameters(op: str) -> None:
    """Where texels can be read by them."""
    spec, workload = SPECS[op], Workload.parse(SPECS[op].example)
    for type in ("cpu", "gpu"):
        limits = replace(LIMITS, type=type, local_memory=32 << 10, image_max_buffer_size=1 << 20)
        safe = spec.safe(workload, limits)
        assert safe.variant == "buffer"
        assert spec.safe_of_kind(workload, limits, "image") == Config("image", safe.params)
