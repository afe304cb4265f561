"""Weights: the formats' exact numbers from the file's blocks, and parts of several stacked."""

from __future__ import annotations

from itertools import pairwise

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clk_cases import DTYPES_OF_MIXTURES
from clkiln.kernels.coding import CODINGS, STORED_BITS, coding_of
from clkiln.kernels.formats import FORMATS
from clkiln.kernels.weights import DTYPES, Matrix, common_dtype, concatenate, row_bytes

quick = settings(max_examples=60, deadline=None, derandomize=True)
seeds = st.integers(0, 2**32 - 1)
dtypes = st.sampled_from(DTYPES)
quantised_dtypes = st.sampled_from(sorted(CODINGS))
#: Those of files, and of stacked parts.
all_dtypes = st.sampled_from([*DTYPES, *DTYPES_OF_MIXTURES])
GGUF_TYPES = {name: gguf.GGMLQuantizationType[name.upper()] for name in (*CODINGS, "bf16")}
#: Where a block has its float16 numbers, by the GGUF specification.
HALFS = {
    "q8_0": (0,), "q4_0": (0,), "q4_1": (0, 2), "q5_0": (0,), "q5_1": (0, 2), "iq4_nl": (0,),
    "q2_k": (80, 82), "q3_k": (108,), "q4_k": (0, 2), "q5_k": (0, 2), "q6_k": (208,),
}  # fmt: skip


def columns(dtype: str) -> int:
    """Columns of a block."""
    coding = coding_of(dtype)
    return coding.columns if coding else 1


def raw_blocks(dtype: str, rows: int, blocks: int, rng: np.random.Generator) -> Matrix:
    """Blocks of random bytes, with finite scales of every magnitude, zero and denormal included."""
    nbytes = gguf.GGML_QUANT_SIZES[GGUF_TYPES[dtype]][1]
    data = rng.integers(0, 256, (rows, blocks, nbytes), dtype=np.uint8)
    for start in HALFS[dtype]:
        scale = rng.integers(0, 1 << 16, (rows, blocks), dtype=np.uint16)
        scale = np.where(scale & 0x7C00 == 0x7C00, scale & 0x83FF, scale)
        data[..., start : start + 2] = scale[..., None].view(np.uint8)
    return Matrix(dtype, blocks * columns(dtype), data.reshape(rows, -1))


def some_matrix(dtype: str, rows: int, blocks: int, rng: np.random.Generator) -> Matrix:
    if dtype in CODINGS:
        return raw_blocks(dtype, rows, blocks, rng)
    cols = blocks * columns(dtype) if coding_of(dtype) else blocks * 7 + 1
    return Matrix.random(dtype, rows, cols, rng)


# --- numbers ----------------------------------------------------------------------------------


@quick
@given(quantised_dtypes, st.integers(1, 5), st.integers(1, 3), seeds)
def test_dequantise_is_the_formats_definition(
    dtype: str, rows: int, blocks: int, seed: int
) -> None:
    """Bit for bit."""
    matrix = raw_blocks(dtype, rows, blocks, np.random.default_rng(seed))
    expected = gguf.quants.dequantize(matrix.data, GGUF_TYPES[dtype])
    got = matrix.dequantise()
    assert got.dtype == np.float32 and got.shape == (rows, matrix.cols)
    assert np.array_equal(got, expected)


@pytest.mark.parametrize("dtype", sorted(CODINGS))
def test_every_byte_of_a_block_counts(dtype: str) -> None:
    """One block, and each other one that differs from it in a single bit."""
    nbytes = FORMATS[dtype].nbytes
    # No nibble is zero: a scale of zero would hide what it scales.
    nibbles = np.random.default_rng(0).integers(1, 16, (2, nbytes), dtype=np.uint8)
    block = nibbles[0] | nibbles[1] << 4
    for start in HALFS[dtype]:
        block[start + 1] = 0x38  # about 0.5; no single bit makes it infinite
    data = np.tile(block, (nbytes * 8, 1))
    bits = np.arange(nbytes * 8)
    data[bits, bits // 8] ^= np.uint8(1) << (bits % 8).astype(np.uint8)
    got = Matrix(dtype, columns(dtype), data).dequantise()
    assert np.array_equal(got, gguf.quants.dequantize(data, GGUF_TYPES[dtype]))
    assert len(np.unique(got, axis=0)) == len(data)


def test_brain_floats_are_the_upper_halves() -> None:
    bits = np.arange(1 << 16, dtype=np.uint16).reshape(256, 256)
    bits = np.where(bits & 0x7F80 == 0x7F80, bits & 0x807F, bits)
    got = Matrix("bf16", 256, bits).dequantise()
    expected = gguf.quants.dequantize(bits.view(np.uint8), GGUF_TYPES["bf16"])
    assert got.tobytes() == expected.tobytes()


@pytest.mark.parametrize("dtype", sorted(CODINGS))
def test_random_blocks_are_the_formats_blocks(dtype: str) -> None:
    """The block sizes of the format."""
    block, size = gguf.GGML_QUANT_SIZES[GGUF_TYPES[dtype]]
    assert (block, size) == (columns(dtype), row_bytes(dtype, columns(dtype)))
    matrix = Matrix.random(dtype, 4, 512, np.random.default_rng(0))
    expected = gguf.quants.dequantize(matrix.data, GGUF_TYPES[dtype])
    assert np.array_equal(matrix.dequantise(), expected)


@pytest.mark.parametrize("dtype", [*DTYPES, *DTYPES_OF_MIXTURES])
def test_random_weights_have_the_variance_that_is_promised(dtype: str) -> None:
    weights = Matrix.random(dtype, 64, 512, np.random.default_rng(0)).dequantise()
    assert 0.8 < weights.std() * np.sqrt(512) < 1.25
    assert abs(weights.mean()) < 0.2 * weights.std()


@pytest.mark.parametrize("dtype", [*sorted(CODINGS), *DTYPES_OF_MIXTURES])
@pytest.mark.parametrize("more", [1, -1, 7])
def test_part_of_a_block_is_refused(dtype: str, more: int) -> None:
    cols = columns(dtype) + more
    with pytest.raises(ValueError, match=f"multiple of {columns(dtype)} columns, not {cols}"):
        Matrix.random(dtype, 2, cols, np.random.default_rng(0))


@quick
@given(all_dtypes, st.integers(1, 40), st.integers(0, 3), st.integers(1, 50), seeds)
def test_times_is_the_product(dtype: str, rows: int, m: int, chunk: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    matrix = some_matrix(dtype, rows, 1, rng)
    x = rng.standard_normal((m, matrix.cols), dtype=np.float32)
    expected = x.astype(np.float64) @ matrix.dequantise().astype(np.float64).T
    got = matrix.times(x, chunk)
    assert got.dtype == np.float64 and got.shape == (m, rows)
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12 * abs(expected).max(initial=1))


# --- stacked parts ----------------------------------------------------------------------------


@quick
@given(all_dtypes, st.lists(st.integers(0, 30), min_size=2, max_size=5), st.integers(1, 3), seeds)
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
    """Every number as it was. Where a zero became a minimum, the sum of the two is rounded."""
    rng = np.random.default_rng(seed)
    parts = [Matrix.random(kind, 3, 256, rng) for kind in kinds]
    whole = concatenate(parts)
    assert whole.dtype == common_dtype(kinds)
    got, expected = whole.dequantise(), np.concatenate([p.dequantise() for p in parts])
    if "m" in whole.dtype.removeprefix("mix"):
        np.testing.assert_allclose(got, expected, rtol=0, atol=2e-7 * abs(expected).max() * 2)
    else:
        assert np.array_equal(got, expected)


@quick
@given(st.lists(quantised_dtypes, min_size=2, max_size=4, unique=True), st.randoms())
def test_a_mixture_is_the_smallest_coding_of_all_parts(kinds: list[str], order: object) -> None:
    name = common_dtype(kinds)
    assert name == common_dtype(reversed(kinds))
    mixed, parts = coding_of(name), [CODINGS[kind] for kind in kinds]
    assert mixed is not None and mixed.mixed == name
    assert mixed.bits == max(part.bits for part in parts)
    assert mixed.halves == max(part.halves for part in parts)
    assert mixed.minima == any(part.minima for part in parts)
    assert mixed.columns == (256 if all(part.columns == 256 for part in parts) else 32)
    if any(part.scales == "k" for part in parts):
        assert 16 not in STORED_BITS[mixed.scales], "float16 can't hold the K formats' scales"


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        (("q5_0", "q5_0"), "q5_0"),
        (("f16", "bf16"), "f32"),
        (("q4_0", "f16"), "f32"),
        (("q4_0", "f32", "q8_0"), "f32"),
        (("q5_0", "q8_0"), "mix8g32h"),
        (("q4_k", "q6_k"), "mix6mg16k"),
        (("q4_k", "q5_k"), "mix5mg32k"),
        (("q4_0", "q5_0"), "mix5z16g32h"),
        (("q4_0", "q4_1"), "mix4mg32f"),
        (("q3_k", "q6_k"), "mix6z32g16k"),
        (("q5_0", "q6_k"), "mix6z32g16f"),
        (("q8_0", "iq4_nl"), "mix8g32h"),
    ],
)
def test_names_of_mixtures(kinds: tuple[str, ...], expected: str) -> None:
    assert common_dtype(kinds) == expected


@pytest.mark.parametrize("name", ["", "f8", "q4_2", "Q4_0", "mix7g32h", "mix4z0g32h", "mix5g64h"])
def test_what_is_no_dtype(name: str) -> None:
    with pytest.raises(ValueError, match="no weight dtype"):
        coding_of(name)
