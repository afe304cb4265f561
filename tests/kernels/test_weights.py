"""Weights: exact numbers from the file's blocks, and every one of them found again in a layout.

Unpacking is written here from the layouts' definition, element by element, and shares nothing with
``pack``.
"""

from __future__ import annotations

from itertools import pairwise

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clkiln.kernels.types import Array
from clkiln.kernels.weights import (
    BLOCK,
    BLOCK_BYTES,
    DTYPES,
    Layout,
    Matrix,
    concatenate,
    pack,
)

quick = settings(max_examples=60, deadline=None, derandomize=True)
seeds = st.integers(0, 2**32 - 1)
dtypes = st.sampled_from(DTYPES)
GGUF_TYPES = {name: gguf.GGMLQuantizationType[name.upper()] for name in BLOCK_BYTES}


def raw_blocks(dtype: str, rows: int, cols: int, rng: np.random.Generator) -> Matrix:
    """Blocks of random bytes, with finite scales of every magnitude, zero and denormal included."""
    blocks = cols // BLOCK
    data = rng.integers(0, 256, (rows, blocks, BLOCK_BYTES[dtype]), dtype=np.uint8)
    for start in (0, 2) if dtype == "q4_1" else (0,):
        scale = rng.integers(0, 1 << 16, (rows, blocks), dtype=np.uint16)
        scale = np.where(scale & 0x7C00 == 0x7C00, scale & 0x83FF, scale)
        data[..., start : start + 2] = scale[..., None].view(np.uint8)
    return Matrix(dtype, cols, data.reshape(rows, -1))


def some_matrix(dtype: str, rows: int, blocks: int, rng: np.random.Generator) -> Matrix:
    if dtype in BLOCK_BYTES:
        return raw_blocks(dtype, rows, blocks * BLOCK, rng)
    return Matrix.random(dtype, rows, blocks * 7 + 1, rng)


# --- numbers ----------------------------------------------------------------------------------


@quick
@given(st.sampled_from(sorted(BLOCK_BYTES)), st.integers(1, 5), st.integers(1, 4), seeds)
def test_dequantise_is_the_formats_definition(
    dtype: str, rows: int, blocks: int, seed: int
) -> None:
    matrix = raw_blocks(dtype, rows, blocks * BLOCK, np.random.default_rng(seed))
    expected = gguf.quants.dequantize(matrix.data, GGUF_TYPES[dtype])
    got = matrix.dequantise()
    assert got.dtype == np.float32 and got.shape == (rows, blocks * BLOCK)
    assert np.array_equal(got, expected)


@pytest.mark.parametrize("dtype", sorted(BLOCK_BYTES))
def test_random_blocks_are_the_formats_blocks(dtype: str) -> None:
    """The block sizes of the format, and weights of the variance that is promised."""
    block, size = gguf.GGML_QUANT_SIZES[GGUF_TYPES[dtype]]
    assert (block, size) == (BLOCK, BLOCK_BYTES[dtype])
    matrix = Matrix.random(dtype, 64, 512, np.random.default_rng(0))
    weights = matrix.dequantise()
    assert np.array_equal(weights, gguf.quants.dequantize(matrix.data, GGUF_TYPES[dtype]))
    assert 0.7 < weights.std() * np.sqrt(512) < 1.5
    assert abs(weights.mean()) < 0.2 * weights.std()


@pytest.mark.parametrize("dtype", sorted(BLOCK_BYTES))
@pytest.mark.parametrize("cols", [1, 31, 33, 100])
def test_part_of_a_block_is_refused(dtype: str, cols: int) -> None:
    with pytest.raises(ValueError, match=f"multiple of {BLOCK} columns, not {cols}"):
        Matrix.random(dtype, 2, cols, np.random.default_rng(0))


@quick
@given(dtypes, st.integers(1, 40), st.integers(1, 3), st.integers(0, 3), st.integers(1, 50), seeds)
def test_times_is_the_product(
    dtype: str, rows: int, blocks: int, m: int, chunk: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    matrix = Matrix.random(dtype, rows, blocks * BLOCK, rng)
    x = rng.standard_normal((m, matrix.cols), dtype=np.float32)
    expected = x.astype(np.float64) @ matrix.dequantise().astype(np.float64).T
    got = matrix.times(x, chunk)
    assert got.dtype == np.float64 and got.shape == (m, rows)
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)


@quick
@given(dtypes, st.lists(st.integers(0, 30), min_size=2, max_size=5), st.integers(1, 3), seeds)
def test_slices_and_concatenation_undo_each_other(
    dtype: str, cuts: list[int], blocks: int, seed: int
) -> None:
    matrix = some_matrix(dtype, 30, blocks, np.random.default_rng(seed))
    edges = sorted({0, 30, *cuts})
    parts = [matrix.slice(a, b) for a, b in pairwise(edges)]
    assert [part.rows for part in parts] == [b - a for a, b in pairwise(edges)]
    for part, (a, b) in zip(parts, pairwise(edges), strict=True):
        assert np.array_equal(part.dequantise(), matrix.dequantise()[a:b])
    whole = concatenate(parts)
    assert whole.dtype == dtype and np.array_equal(whole.data, matrix.data)


@quick
@given(st.lists(dtypes, min_size=2, max_size=4), seeds)
def test_concatenation_of_other_dtypes_is_exact(kinds: list[str], seed: int) -> None:
    rng = np.random.default_rng(seed)
    parts = [Matrix.random(kind, 3, 64, rng) for kind in kinds]
    whole = concatenate(parts)
    assert whole.dtype == (kinds[0] if len(set(kinds)) == 1 else "f32")
    assert np.array_equal(whole.dequantise(), np.concatenate([p.dequantise() for p in parts]))


# --- layouts ----------------------------------------------------------------------------------


@st.composite
def layouts(draw: st.DrawFn, dtype: str | None = None) -> Layout:
    dtype = dtype or draw(dtypes)
    quantised = dtype in BLOCK_BYTES
    image = draw(st.booleans())
    rows = draw(st.sampled_from((16,) if image and quantised else (4, 8, 16)))
    scale_bits = draw(st.sampled_from((16, 32))) if quantised else 0
    width = draw(st.sampled_from((1, 3, 64, 2048))) if image else 0
    return Layout(
        dtype, "image2d" if image else "buffer", rows, scale_bits, draw(st.booleans()), width
    )


@quick
@given(layouts())
def test_layout_text_comes_back(layout: Layout) -> None:
    assert Layout.parse(str(layout)) == layout


@quick
@given(st.text("q4_1f2bufer imag2ds16wpad", max_size=24) | layouts().map(lambda x: f"{x} "))
def test_only_canonical_layouts_are_read(text: str) -> None:
    try:
        layout = Layout.parse(text)
    except ValueError:
        return
    assert str(layout) == text


class Unpacker:
    """Reads single numbers of a packed matrix, and remembers which places it has read."""

    def __init__(self, parts: dict[str, Array], layout: Layout, rows: int, cols: int) -> None:
        self.layout, self.rows, self.cols = layout, rows, cols
        codes = parts["q"].reshape(-1)
        if layout.scale_bits and layout.memory == "image2d":
            codes = codes.view(np.uint8)
        if layout.dtype == "q8_0":
            codes = codes.view(np.int8)
        self.codes, self.scales = codes, parts.get("s", np.empty(0))
        self.read = {"q": np.zeros(codes.size, bool), "s": np.zeros(self.scales.size, bool)}

    def place(self, row: Array) -> tuple[Array, Array]:
        """Row group and lane of a row. Paired: gate groups at even places, up groups at odd."""
        size = self.layout.rows
        if not self.layout.paired:
            return row // size, row % size
        half = self.rows // 2
        return row % half // size * 2 + row // half, row % half % size

    def number(self, part: str, index: Array) -> Array:
        self.read[part][index] = True
        return (self.codes if part == "q" else self.scales)[index].astype(np.float32)

    def scale(self, row: Array, block: Array, which: int, of: int) -> Array:
        group, lane = self.place(row)
        at = (group * (self.cols // BLOCK) + block) * of + which
        return self.number("s", at * self.layout.rows + lane)

    def element(self, row: Array, col: Array) -> Array:
        """The weight at (row, col), which NumPy broadcasts."""
        group, lane = self.place(row)
        size, dtype, block = self.layout.rows, self.layout.dtype, col // BLOCK
        if dtype in ("f32", "f16"):
            return self.number("q", (group * self.cols + col) * size + lane)
        if dtype == "q8_0":
            code = self.number("q", (group * self.cols + col) * size + lane)
            return code * self.scale(row, block, 0, 1)
        pair = (group * (self.cols // BLOCK) + block) * 16 + col % 16
        byte = self.number("q", pair * size + lane).astype(np.uint8)
        code = np.where(col % BLOCK < 16, byte & 15, byte >> 4).astype(np.float32)
        if dtype == "q4_0":
            return (code - 8) * self.scale(row, block, 0, 1)
        return code * self.scale(row, block, 0, 2) + self.scale(row, block, 1, 2)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(layouts(), st.integers(1, 45), st.integers(1, 4), seeds)
def test_every_weight_is_found_and_nothing_else(
    layout: Layout, rows: int, blocks: int, seed: int
) -> None:
    """Exact values, in arrays as the arguments declare them, with zeros where no weight lies."""
    rows += rows % 2 if layout.paired else 0
    matrix = some_matrix(layout.dtype, rows, blocks, np.random.default_rng(seed))
    parts = pack(matrix, layout)
    declared = {a.name: a for a in layout.arguments("w", rows, matrix.cols)}
    assert set(declared) == {f"w.{part}" for part in parts}
    for part, array in parts.items():
        argument = declared[f"w.{part}"]
        assert (array.shape, array.dtype) == (argument.shape, np.dtype(argument.dtype))
    unpacker = Unpacker(parts, layout, rows, matrix.cols)
    got = unpacker.element(np.arange(rows)[:, None], np.arange(matrix.cols)[None, :])
    assert np.array_equal(got, matrix.dequantise())
    assert not unpacker.codes[~unpacker.read["q"]].any()
    assert not unpacker.scales[~unpacker.read["s"]].any()


@quick
@given(dtypes, layouts())
def test_other_dtypes_are_refused(dtype: str, layout: Layout) -> None:
    matrix = Matrix.random(dtype, 2, 32, np.random.default_rng(0))
    if dtype == layout.dtype:
        pack(matrix, layout)
    else:
        with pytest.raises(ValueError, match=f"a {dtype} matrix can't be packed as"):
            pack(matrix, layout)


def test_pack_leaves_the_matrix_alone() -> None:
    matrix = Matrix.random("q4_1", 5, 64, np.random.default_rng(0))
    matrix.data.flags.writeable = False  # as a memory-mapped file is
    for layout in (Layout("q4_1", "buffer", 4, 16), Layout("q4_1", "image2d", 16, 32, False, 64)):
        pack(matrix, layout)
