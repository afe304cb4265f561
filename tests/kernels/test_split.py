"""Pieces of matrices: that they fit in every layout, and that kernels keep to their own rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clk_cases import DTYPES_OF_MIXTURES, any_of
from clk_pocl import find_pocl
from clk_run import Limits
from clkiln.harness.operation import Operation, label_of
from clkiln.kernels import SPECS
from clkiln.kernels.coding import coding_of
from clkiln.kernels.feasible import argument_limit
from clkiln.kernels.layout import WIDTHS, Layout, layout_space
from clkiln.kernels.split import ALIGNMENT, pieces
from clkiln.kernels.types import Config, Workload
from clkiln.kernels.weights import DTYPES
from clkiln.runtime.context import Context
from clkiln.runtime.program import ProgramLoader

CODINGS = (*DTYPES, *DTYPES_OF_MIXTURES)

# -- where a matrix is cut -------------------------------------------------------------------------


@st.composite
def devices(draw: st.DrawFn) -> Limits:
    """Limits between far too small and far too large, with images or without."""
    sizes = st.sampled_from((1, 2, 7, 64, 2048, 4096, 8192, 16384))
    return Limits(
        max_alloc=draw(st.integers(1, 1 << 10)) << draw(st.integers(0, 20)),
        image2d_max_width=draw(sizes),
        image2d_max_height=draw(sizes),
        features=frozenset({"images"} if draw(st.booleans()) else ()),
    )


@st.composite
def matrices(draw: st.DrawFn) -> tuple[int, int, str, bool]:
    """Rows (of each half), columns, dtype, and whether there are two halves."""
    dtype = draw(st.sampled_from(CODINGS))
    coding = coding_of(dtype)
    blocks = draw(st.integers(1, 1 << draw(st.integers(0, 13))))
    rows = draw(st.integers(1, 1 << draw(st.integers(0, 18))))
    return rows, blocks * (coding.columns if coding else 1), dtype, draw(st.booleans())


def fits(layout: Layout, n: int, k: int, limits: Limits) -> bool:
    arguments = layout.arguments("w", 2 * n if layout.paired else n, k)
    return all(argument_limit(argument, limits) is None for argument in arguments)


def layouts(dtype: str, memory: str, paired: bool, width: int = 0) -> list[Layout]:
    """Every layout that a search may choose."""
    place = "image2d" if memory == "image2d" else "buffer"
    space = layout_space(dtype, place)
    return [
        Layout(dtype, place, rows, scale_bits, paired, width)
        for rows in space["R"]
        for scale_bits in space.get("S", (0,))
    ]


def holds(n: int, matrix: tuple[int, int, str, bool], limits: Limits) -> tuple[bool, bool]:
    """Whether ``n`` rows fit into buffers in every layout, and into images of any one width."""
    _, k, dtype, paired = matrix
    buffers = all(fits(layout, n, k, limits) for layout in layouts(dtype, "buffer", paired))
    images = any(
        all(fits(layout, n, k, limits) for layout in layouts(dtype, "image2d", paired, width))
        for width in WIDTHS
    )
    return buffers, images and "images" in limits.features


@settings(max_examples=200, deadline=None, derandomize=True)
@given(matrices(), devices())
def test_pieces_cover_all_rows_and_fit(matrix: tuple[int, int, str, bool], limits: Limits) -> None:
    n, k, dtype, paired = matrix
    found = pieces(n, k, dtype, limits, paired=paired)
    assert [start for start, _ in found] == [0, *(stop for _, stop in found[:-1])]
    assert found[-1][1] == n
    sizes = [stop - start for start, stop in found]
    assert {*sizes[:-1]} <= {sizes[0]}, "one workload, and another for what is left"
    assert 0 < sizes[-1] <= sizes[0]
    assert len(sizes) == 1 or sizes[0] % ALIGNMENT == 0
    least = holds(ALIGNMENT, matrix, limits)
    # What can't hold the least of pieces is left out.
    for wanted, have in zip(least, holds(sizes[0], matrix, limits), strict=True):
        assert have or not wanted
    if not any(least):
        assert len(sizes) == 1
    if len(sizes) > 1:
        # Fewer would not do: the largest of one less would be as large as this.
        units = -(-n // ALIGNMENT)
        fewer = -(-units // (len(sizes) - 1)) * ALIGNMENT
        more = holds(fewer, matrix, limits)
        assert any(wanted and not have for wanted, have in zip(least, more, strict=True))


def test_a_head_of_151936_rows() -> None:
    """Qwen1.5-0.5B's in float16, 311 MB, on what OpenCL 1.2 promises and on a narrow device."""
    promised = Limits(features=frozenset({"images"}))
    assert pieces(151936, 1024, "f16", promised) == [(0, 50656), (50656, 101312), (101312, 151936)]
    narrow = replace(promised, image2d_max_width=2048, image2d_max_height=4096)
    assert len(pieces(151936, 1024, "f16", narrow)) == 5
    large = replace(promised, max_alloc=1 << 30)
    assert len(pieces(151936, 1024, "f16", large)) == 1


# -- what kernels make of them ---------------------------------------------------------------------


@pytest.fixture(scope="module", params=["pip", "debian"])
def loader(request: pytest.FixtureRequest) -> Iterator[ProgramLoader]:
    with Context(find_pocl(request.param)) as context:
        yield ProgramLoader(context)


def random_piece(op: str, rng: np.random.Generator) -> Workload:
    """A piece of any matrix; sizes that divide nothing evenly, one row and all rows among them."""
    dtype = str(rng.choice(CODINGS))
    coding = coding_of(dtype)
    step = coding.columns if coding else 1
    n, k = int(rng.integers(1, 90)), step * int(rng.integers(1, max(150 // step, 2) + 1))
    sizes = {"n": n, "k": k, "of": n + int(rng.integers(0, 90))}
    if op == "embedding":
        return Workload.of(op, m=int(rng.integers(1, 9)), w=dtype, **sizes)
    fuse, bias = str(rng.choice(["none", "add", "swiglu"])), str(rng.choice(["yes", "no"]))
    workload = Workload.of(op, bias=bias, fuse=fuse, w=dtype, **sizes)
    if op == "gemm":
        return workload.replace(m=int(rng.integers(2, 40)))
    normed = fuse != "add" and rng.integers(2)
    return workload.replace(norm="yes", eps="1e-05") if normed else workload


@pytest.mark.parametrize("op", ["gemv", "gemm", "embedding"])
@pytest.mark.parametrize("seed", range(6))
def test_a_piece_is_right_and_leaves_the_rest(loader: ProgramLoader, op: str, seed: int) -> None:
    rng = np.random.default_rng([seed, "debian" in loader.context.info.platform_version])
    workload = random_piece(op, rng)
    config = any_of(SPECS[op], workload, loader.context.info, rng)
    operation = Operation(loader.context, workload, seed=seed)
    label = label_of(workload, config)
    verdict = operation.verify(loader.load(operation.spec.source(workload, config), label), config)
    assert verdict.ok, f"{label}: {verdict.message}"


@pytest.mark.parametrize("op", ["gemv", "gemm", "embedding"])
def test_one_program_serves_every_piece(op: str) -> None:
    """Where a piece begins is an argument."""
    rng = np.random.default_rng(2)
    spec, workload = SPECS[op], random_piece(op, rng)
    firsts = {int(spec.inputs(workload, rng)["piece"][0]) for _ in range(20)}
    assert len(firsts) > 1


def test_pieces_of_a_product_are_the_product() -> None:
    """The reference, against that of the whole matrix."""
    rng = np.random.default_rng(5)
    whole = Workload.of("gemm", bias="yes", fuse="swiglu", k=64, m=3, n=50, w="q4_1")
    spec = SPECS["gemm"]
    inputs = spec.inputs(whole, rng)
    w, y = inputs["w"], np.zeros((3, 50))
    for start, stop in ((32, 50), (0, 16), (16, 32)):
        data = np.concatenate([w.data[start:stop], w.data[50 + start : 50 + stop]])
        own = {"w": replace(w, data=data), "piece": np.array([start], np.int32), "y": y}
        y = spec.reference(whole.replace(n=stop - start, of=50), inputs | own)["y"]
    np.testing.assert_allclose(y, spec.reference(whole, inputs)["y"], rtol=1e-12)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_a_table_in_pieces(loader: ProgramLoader, order: tuple[int, ...]) -> None:
    """Each token's row comes from the one piece that has it, an unknown token's zeros from the
    first; in whatever order the pieces are."""
    rng = np.random.default_rng(1)
    whole = Workload.of("embedding", k=64, m=40, n=37, w="q4_1")
    spec, context = SPECS["embedding"], loader.context
    table = spec.inputs(whole, rng)["w"]
    tokens = rng.integers(0, 37, 40, np.int32)
    tokens[[3, 11, 20]] = -1, 37, 2**31 - 1
    tokens[[4, 5, 6, 7, 8, 9]] = 0, 15, 16, 31, 32, 36
    bounds = [(0, 16), (16, 32), (32, 37)]
    config = Config.of("buffer", R=8, S=16, LX=1, V=16)
    y = np.full((40, 64), np.nan, np.float32)
    for start, stop in (bounds[place] for place in order):
        workload = whole.replace(n=stop - start, of=37)
        program = loader.load(spec.source(workload, config), str(workload))
        operation = Operation(context, workload)
        piece = np.array([start], np.int32)
        operation.inputs |= {"w": table.slice(start, stop), "tokens": tokens, "piece": piece}
        operation.inputs["y"] = y
        bound = operation.bind(program, config)
        bound.launch.enqueue()
        y = bound.tensors["y"].read(y.size).reshape(y.shape)
        bound.release()
    expected = table.dequantise()[np.clip(tokens, 0, 36)]
    expected[[3, 11, 20]] = 0
    np.testing.assert_allclose(y, expected, rtol=1e-6)
