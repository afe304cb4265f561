"""Transpositions: every order of the axes, bit for bit, in tiles that fit the device."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clk_cases import seeds
from clk_run import Limits, Runner
from clkiln.kernels import SPECS
from clkiln.kernels.transpose.axes import moved
from clkiln.kernels.types import Workload

SPEC = SPECS["transpose"]
ORDERS = ["".join(order) for order in permutations("abcd")]
BITS = {"f32": np.uint32, "f16": np.uint16}
#: NaNs with payloads, quiet and signalling, of both signs; infinities, denormals, both zeros.
SPECIAL = {
    "f32": (0x7FC01234, 0x7F801234, 0xFFC00001, 0x7F800000, 0xFF800000, 0x00000001, 0x80000000),
    "f16": (0x7E12, 0x7D12, 0xFE01, 0x7C00, 0xFC00, 0x0001, 0x8000),
}
GPU = Limits("gpu", 132, 48 << 10, 1024, (1024, 1024, 64), 8 << 30, 32768, 32768)

sides = st.tuples(*[st.integers(1, 6)] * 4)


@given(sides, st.permutations(range(4)))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_merged_axes_are_the_same_transposition(shape: tuple[int, ...], order: list[int]) -> None:
    """Element by element, through the steps that the kernel goes."""
    x = np.arange(np.prod(shape)).reshape(shape)
    axes = moved(shape, order)
    every = (axes.x, axes.y, *axes.others)
    grid = np.indices([axis.size for axis in every])
    steps = [sum(g * getattr(a, way) for g, a in zip(grid, every, strict=True))
             for way in ("step_in", "step_out")]  # fmt: skip
    y = np.full(x.size, -1)
    y[steps[1].reshape(-1)] = x.reshape(-1)[steps[0].reshape(-1)]
    assert np.array_equal(y, x.transpose(order).reshape(-1))
    assert axes.rows == (axes.x.step_out == 1 and axes.x.step_in == 1)
    assert axes.rows or axes.y.step_out == 1


def test_neighbours_that_stay_are_one_axis() -> None:
    assert moved((2, 3, 4, 5), (2, 3, 0, 1)) == moved((1, 1, 6, 20), (0, 1, 3, 2))
    assert moved((2, 3, 4, 5), (0, 1, 2, 3)).x.size == 120
    assert moved((7, 1, 4, 1), (1, 2, 3, 0)) == moved((1, 1, 7, 4), (0, 1, 3, 2))


@pytest.mark.parametrize("seed", seeds(4, 48))
def test_bits_are_kept(any_runner: Runner, seed: int) -> None:
    """Of any number, and of what is none; sizes that divide nothing."""
    rng = np.random.default_rng([seed, 3])
    # By fives, so that the first few differ in what lies side by side.
    perm, dtype = ORDERS[seed * 5 % 24], ("f32", "f16")[seed // 2 % 2]
    a, b, c, d = (int(n) for n in rng.integers(1, 24, 4))
    workload = Workload.of("transpose", a=a, b=b, c=c, d=d, perm=perm, dtype=dtype)
    bits = rng.integers(0, np.iinfo(BITS[dtype]).max, (a, b, c, d), BITS[dtype], endpoint=True)
    bits.flat[: len(SPECIAL[dtype])] = SPECIAL[dtype][: bits.size]
    want = bits.transpose(["abcd".index(name) for name in perm])
    # Of all variants, those of a GPU with them.
    limits = replace(any_runner.limits, type="gpu")
    feasible = SPEC.feasible(workload, limits)
    for variant in SPEC.variants:
        configs = [config for config in feasible if config.variant == variant.name]
        if not configs:
            continue
        config = configs[rng.integers(len(configs))]
        x = bits.view(np.float32 if dtype == "f32" else np.float16)
        got, _ = any_runner.run(SPEC, workload, config, {"x": x})
        assert np.array_equal(got["y"].view(BITS[dtype]), want), f"{workload} {config}"


@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_a_tile_fits_the_device(dtype: str) -> None:
    """An engine that took 64 KiB of local memory for granted failed where there are 48."""
    workload = Workload.of("transpose", a=1, b=1, c=512, d=512, perm="abdc", dtype=dtype)
    size = 4 if dtype == "f32" else 2
    for memory in (64 << 10, 48 << 10, 32 << 10, 16 << 10, 500, 0):
        limits = replace(GPU, local_memory=memory)
        tiled = [c for c in SPEC.feasible(workload, limits) if c.variant == "tiled"]
        assert all(c["TILE"] * (c["TILE"] + c["PAD"]) * size <= memory for c in tiled)
        largest = [n for n in (8, 16, 32, 64, 128) if n * n * size <= memory]
        assert {c["TILE"] for c in tiled} == set(largest)
        assert SPEC.check(workload, SPEC.safe(workload, limits), limits) is None
        assert SPEC.safe(workload, limits).variant == ("tiled" if memory > 500 else "buffer")
    broken = SPEC.check(workload, SPEC.safe(workload, GPU).replace(TILE=128), replace(
        GPU, local_memory=16 << 10))  # fmt: skip
    assert broken is not None and "local memory" in broken.reason


def test_an_order_that_is_none_is_refused() -> None:
    workload = Workload.parse("transpose a=1 b=1 c=1 d=1 dtype=f32 perm=abca")
    with pytest.raises(ValueError, match="perm=abca is no order"):
        SPEC.safe(workload, GPU)
