"""Activations in buffers, as texels and in images of their own: what reads and what makes them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clk_cache import quick
from clk_cases import TINY
from clk_pocl import find_pocl
from clk_run import Limits
from clkiln.harness.operation import Operation, label_of
from clkiln.kernels import SPECS
from clkiln.kernels.images import CONVERTED, FORMS, as_image, conversion
from clkiln.kernels.types import Config, Workload
from clkiln.runtime.context import Context
from clkiln.runtime.program import ProgramLoader

IMAGES = frozenset({"images", "image_buffers"})
LIMITS = Limits("cpu", 2, 1 << 20, 4096, (4096,) * 3, features=IMAGES)
#: Every kind of scales, columns that no texel divides, and what reads x in a way of its own.
LINEAR = (
    "gemv bias=no fuse=none k=101 n=37 w=f32",
    "gemv bias=yes fuse=add k=3 n=19 w=bf16",
    "gemv bias=no eps=1e-05 fuse=none k=70 n=19 norm=yes w=f16",
    "gemv bias=no fuse=swiglu k=96 n=37 w=q4_1",
    "gemv bias=yes fuse=none k=512 n=19 w=q6_k",
    "gemm bias=yes fuse=none k=101 m=7 n=19 w=f32",
    "gemm bias=no fuse=add k=70 m=13 n=37 w=bf16",
    "gemm bias=yes fuse=none k=1 m=3 n=19 w=f16",
    "gemm bias=no fuse=swiglu k=96 m=9 n=37 w=q4_0",
    "gemm bias=no fuse=none k=256 m=5 n=19 w=mix6mg16k",
)
SMALL = [Workload.parse(text) for text in (*LINEAR, TINY["gemv"][-1], TINY["gemm"][-1])]


@pytest.fixture(scope="module", params=["pip", "debian"])
def loader(request: pytest.FixtureRequest) -> Iterator[ProgramLoader]:
    with Context(find_pocl(request.param)) as context:
        yield ProgramLoader(context)


def verify(loader: ProgramLoader, workload: Workload, config: Config, seed: int) -> None:
    label = label_of(workload, config)
    operation = Operation(loader.context, workload, seed=seed)
    program = loader.load(operation.spec.source(workload, config), label)
    verdict = operation.verify(program, config)
    assert verdict.ok, f"{label}: {verdict.message}"
    assert loader.context.memory.used == 0


@cache
def of_form(workload: Workload, form: int, limits: Limits = LIMITS) -> list[Config]:
    feasible = SPECS[workload.op].feasible(workload, limits, "image")
    return [config for config in feasible if config["XM"] == form]


@pytest.mark.parametrize("form", range(len(FORMS)), ids=FORMS)
@pytest.mark.parametrize("text", LINEAR)
def test_linear_layers_read_every_form(loader: ProgramLoader, text: str, form: int) -> None:
    """Some configuration of each, in the bucket and below it."""
    workload, seed = Workload.parse(text), LINEAR.index(text)
    configs = of_form(workload, form, loader.context.info)  # type: ignore[arg-type]
    config = configs[np.random.default_rng([seed, form]).integers(len(configs))]
    verify(loader, workload, config, seed)


@pytest.mark.parametrize(
    "seed", [*range(3), *(pytest.param(seed, marks=pytest.mark.long) for seed in range(3, 6))]
)
def test_a_conversion_copies_and_fills_up(loader: ProgramLoader, seed: int) -> None:
    """To the bit; what no column fills is zero."""
    rng = np.random.default_rng(seed)
    k = int(rng.integers(1, 90)) * (4 if seed % 2 else 1)
    workload, spec = conversion(int(rng.integers(1, 40)), k), SPECS["to_image"]
    feasible = spec.feasible(workload, loader.context.info)
    for variant in {config.variant for config in feasible}:
        own = [config for config in feasible if config.variant == variant]
        verify(loader, workload, own[rng.integers(len(own))], seed)


@quick
@given(st.integers(1, 9), st.integers(1, 70), st.randoms(use_true_random=False))
def test_an_image_holds_the_matrix_and_zeros(rows: int, cols: int, random: object) -> None:
    matrix = np.arange(1, rows * cols + 1, dtype=np.float32).reshape(rows, cols)
    image = as_image(matrix)
    assert image.shape == (rows, (cols + 3) // 4, 4)
    flat = image.reshape(rows, -1)
    assert np.array_equal(flat[:, :cols], matrix) and not flat[:, cols:].any()


@quick
@given(st.sampled_from(SMALL), st.sampled_from(range(len(FORMS))), st.data())
def test_what_reads_an_image_asks_for_its_conversion(
    workload: Workload, form: int, data: st.DataObject
) -> None:
    """And for nothing else; what the conversion writes is what is read."""
    spec = SPECS[workload.op]
    config = data.draw(st.sampled_from(of_form(workload, form)))
    arguments = {argument.name: argument for argument in spec.arguments(workload, config)}
    assert arguments["x"].memory == FORMS[form]
    needed = spec.conversions(workload, config)
    assert set(needed) == ({"x"} if form == CONVERTED else set())
    for name, made in needed.items():
        converting = SPECS[made.op]
        *_, image = converting.arguments(made, converting.safe(made, LIMITS))
        assert (image.shape, image.dtype) == (arguments[name].shape, arguments[name].dtype)
        assert image.memory == arguments[name].memory == "image2d"
    # Weights in buffers stay with activations in buffers.
    other = spec.safe(workload, LIMITS)
    assert other.variant == "buffer" and not spec.conversions(workload, other)


def test_what_a_device_lacks_rules_out_its_form_alone() -> None:
    workload = Workload.parse("gemm bias=no fuse=none k=96 m=256 n=37 w=q4_0")
    every = {0, 1, 2}
    for limits, forms in (
        (LIMITS, every),
        (replace(LIMITS, features=frozenset({"images"})), every - {1}),
        # 256 rows, 24 texels a row; the weight's image has at most 8 rows of 2048.
        (replace(LIMITS, image2d_max_height=255), every - {2}),
        (replace(LIMITS, image_max_buffer_size=6143), every - {1}),
    ):
        found = SPECS["gemm"].feasible(workload, limits, "image")
        assert {config["XM"] for config in found} == forms
    wide = workload.replace(k=32 * 300, n=1)
    narrow = replace(LIMITS, image2d_max_width=2048, image_max_buffer_size=1 << 20)
    found = SPECS["gemm"].feasible(wide, narrow, "image")
    assert {config["XM"] for config in found} == every - {2}
    assert SPECS["gemm"].safe_of_kind(workload, LIMITS, "image")["XM"] == 0  # type: ignore[index]
