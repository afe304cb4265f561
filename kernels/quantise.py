"""Quantising float weights by the formats' own definitions (ggml's reference), rows at a time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .coding import BLOCK
from .formats import row_bytes
from .types import Array
from .weights import Matrix

#: Numbers that are quantised at a time, so that intermediate arrays stay small.
CHUNK = 1 << 18
#: What rounds halves up when it is added and the fraction cut off, and nothing below a half.
BELOW_HALF = np.nextafter(np.float32(0.5), np.float32(0))


def quantise(array: Array, dtype: str) -> Matrix:
    """``float [rows, cols]`` as ``q8_0`` or ``q4_0``.

    Each block of 32 columns is scaled by its largest magnitude: to 127 (q8_0), or its signed value
    to -8 (q4_0). Raises ``ValueError`` for another dtype, for columns that are no multiple of 32,
    and for numbers that are not finite or leave the range of a float16 scale.
    """
    if dtype not in QUANTISERS:
        raise ValueError(f"weights can be quantised to {' or '.join(QUANTISERS)}, not to {dtype}")
    rows, cols = array.shape
    out = np.empty((rows, row_bytes(dtype, cols)), np.uint8)
    step = max(CHUNK // max(cols, 1), 1)
    for start in range(0, rows, step):
        part = array[start : start + step].astype(np.float32, copy=False)
        blocks = part.reshape(part.shape[0], -1, BLOCK)
        scales, codes = QUANTISERS[dtype](blocks)
        with np.errstate(over="ignore"):
            scales = scales.astype(np.float16)
        if not np.isfinite(scales).all():
            raise ValueError(f"a weight is not finite or too large for {dtype}'s float16 scale")
        # Moved as single elements of their size: NumPy is slow where the last axis is short.
        kind = np.dtype([("scale", "V2"), ("codes", f"V{codes.shape[-1]}")])
        found = out[start : start + step].view(kind)
        found["scale"] = scales.view(kind["scale"])[..., 0]
        found["codes"] = codes.view(kind["codes"])[..., 0]
    return Matrix(dtype, cols, out)


def _q8_0(blocks: Array) -> tuple[Array, Array]:
    """Scales ``[..., 1]`` and codes ``int8 [..., 32]``, halves rounded away from zero."""
    by_column = _by_column(blocks)
    d = np.abs(by_column, out=by_column).max(axis=0) / np.float32(127)
    with np.errstate(invalid="ignore"):
        scaled = blocks * _inverse(d)
        scaled += np.copysign(BELOW_HALF, scaled)
        return d, scaled.astype(np.int8)


def _q4_0(blocks: Array) -> tuple[Array, Array]:
    """Scales ``[..., 1]`` and pairs of nibbles ``uint8 [..., 16]``."""
    by_column = _by_column(blocks)
    most, least = by_column.max(axis=0), by_column.min(axis=0)
    largest = np.where(most > -least, most, least)
    # Where the two are as large, the first in the block decides.
    tied = (most == -least)[..., 0]
    first = np.abs(blocks[tied]).argmax(axis=-1)
    largest[tied] = np.take_along_axis(blocks[tied], first[..., None], axis=-1)
    d = largest / np.float32(-8)
    with np.errstate(invalid="ignore"):
        scaled = blocks * _inverse(d)
        scaled += np.float32(8.5)
        codes = np.minimum(scaled.astype(np.uint8), 15)
    return d, codes[..., :16] | codes[..., 16:] << 4


def _by_column(blocks: Array) -> Array:
    """A copy ``[32, rows, blocks, 1]``, over whose first axis NumPy reduces quickly."""
    return np.ascontiguousarray(np.moveaxis(blocks, -1, 0))[..., None]


def _inverse(d: Array) -> Array:
    """1 / d; 0 for scales so small that they are zeros in float16 and their inverse infinite."""
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.float32(1) / d
    inverse[~np.isfinite(inverse)] = 0
    return inverse


#: What quantises blocks ``float32 [..., 32]``, by dtype.
QUANTISERS: dict[str, Callable[[Array], tuple[Array, Array]]] = {"q8_0": _q8_0, "q4_0": _q4_0}
