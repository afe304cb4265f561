"""Quantised floats, byte for byte those of the reference implementation."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clkiln.kernels.quantise import QUANTISERS, quantise

KINDS = {name: gguf.GGMLQuantizationType[name.upper()] for name in QUANTISERS}
kinds = st.sampled_from(sorted(QUANTISERS))
quick = settings(max_examples=80, deadline=None, derandomize=True)


@st.composite
def weights(draw: st.DrawFn) -> np.ndarray:
    """Rows of unlike size, with zeros, ties, and numbers half-way between two codes."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rows, blocks = draw(st.integers(1, 20)), draw(st.integers(1, 5))
    array = rng.standard_normal((rows, blocks, 32)).astype(np.float32)
    array *= np.exp2(rng.uniform(-30, 12, (rows, blocks, 1))).astype(np.float32)
    kind = rng.integers(0, 5, (rows, blocks))
    array[kind == 0] = 0
    array[kind == 1] = rng.integers(-16, 17, array[kind == 1].shape)
    array[kind == 2] = rng.integers(-254, 255, array[kind == 2].shape) / 2
    array[kind == 3] = -0.0
    return array.reshape(rows, -1)


@quick
@given(kinds, weights())
def test_bytes_are_the_references(dtype: str, array: np.ndarray) -> None:
    got = quantise(array, dtype)
    assert (got.dtype, got.cols, got.rows) == (dtype, array.shape[1], array.shape[0])
    assert np.array_equal(got.data, gguf.quants.quantize(array, KINDS[dtype]))


@pytest.mark.parametrize("dtype", sorted(QUANTISERS))
def test_halves_round_as_the_reference_rounds(dtype: str) -> None:
    """Scaled numbers next to a half, from either side."""
    halves = np.arange(-126.5, 127).astype(np.float32)
    near = [np.nextafter(halves, np.float32(side)) for side in (-np.inf, np.inf)]
    numbers = np.concatenate([halves, *near])
    blocks = np.zeros((numbers.size, 32), np.float32)
    blocks[:, 1], blocks[:, 0] = numbers, 127
    if dtype == "q4_0":
        blocks[:, 1], blocks[:, 0] = numbers / 16, -8
    expected = gguf.quants.quantize(blocks, KINDS[dtype])
    assert np.array_equal(quantise(blocks, dtype).data, expected)


@pytest.mark.parametrize("dtype", sorted(QUANTISERS))
def test_pieces_are_the_whole(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    array = np.random.default_rng(0).standard_normal((37, 96), dtype=np.float32)
    whole = quantise(array, dtype).data
    monkeypatch.setattr("clkiln.kernels.quantise.CHUNK", 1000)
    assert np.array_equal(quantise(array, dtype).data, whole)
    half = array.astype(np.float16)
    assert np.array_equal(quantise(half, dtype).data, quantise(half.astype("f4"), dtype).data)


@pytest.mark.parametrize("dtype", sorted(QUANTISERS))
@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf, 1e9, -3e38])
def test_what_no_scale_can_hold_is_refused(dtype: str, number: float) -> None:
    array = np.random.default_rng(0).standard_normal((5, 64), dtype=np.float32)
    array[3, 40] = number
    with pytest.raises(ValueError, match="not finite or too large"):
        quantise(array, dtype)


def test_numbers_too_small_for_a_scale_are_zero() -> None:
    for dtype in QUANTISERS:
        array = np.full((1, 32), 1e-44, np.float32)
        assert not quantise(array, dtype).dequantise().any()


@pytest.mark.parametrize(
    ("dtype", "cols"), [("q8_0", 33), ("q4_0", 31), ("q4_k", 256), ("f16", 32)]
)
def test_what_cannot_be_quantised(dtype: str, cols: int) -> None:
    with pytest.raises(ValueError, match=r"multiple of 32 columns|can be quantised to"):
        quantise(np.zeros((2, cols), np.float32), dtype)
