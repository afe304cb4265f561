"""Weight matrices as model files hold them: rows of numbers or of raw blocks, by dtype.

A *dtype* names how a file codes numbers (GGUF's types) or, for stacked parts of several dtypes, the
smallest coding that holds all of them (:mod:`~.coding`). :mod:`~.layout` says where they lie for a
kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .coding import BLOCK, DTYPES, FLOATS, Coding, coding_of, common_dtype
from .formats import FORMATS, decode, encode_mixed, plane_sizes, row_bytes
from .planes import Planes, join
from .types import Array

__all__ = ["DTYPES", "Matrix", "common_dtype", "concatenate", "row_bytes"]


@dataclass(frozen=True, eq=False)
class Matrix:
    """A weight: floats ``[rows, cols]`` (bfloat16 as uint16), or ``uint8 [rows, row_bytes]``."""

    dtype: str
    cols: int
    data: Array

    @property
    def rows(self) -> int:
        return int(self.data.shape[0])

    @property
    def quantised(self) -> bool:
        return self.dtype not in FLOATS

    @classmethod
    def random(cls, dtype: str, rows: int, cols: int, rng: np.random.Generator) -> Matrix:
        """Random weights whose products with unit-variance vectors have variance about one."""
        deviation = 1 / np.sqrt(cols)
        coding = coding_of(dtype)
        if coding is None:
            floats = rng.standard_normal((rows, cols), dtype=np.float32) * np.float32(deviation)
            if dtype == "bf16":
                return cls(dtype, cols, (floats.view(np.uint32) >> 16).astype(np.uint16))
            return cls(dtype, cols, floats.astype(FLOATS[dtype]))
        size = row_bytes(dtype, cols)
        if dtype in FORMATS:
            data = rng.integers(0, 256, (rows, size), dtype=np.uint8)
            return _scaled(dtype, cols, data, deviation, rng)
        return cls(dtype, cols, _random_mixed(coding, rows, cols, deviation, rng))

    def planes(self) -> Planes:
        """Codes and scales, apart. Raises ``ValueError`` for floats, which have none."""
        return decode(self.dtype, self.cols, self.data)

    def slice(self, start: int, stop: int) -> Matrix:
        return Matrix(self.dtype, self.cols, self.data[start:stop])

    def dequantise(self) -> Array:
        """float32 ``[rows, cols]``, by the format's arithmetic; exact up to float32 rounding."""
        if self.quantised:
            return self.planes().dequantise()
        if self.dtype == "bf16":
            return (self.data.astype(np.uint32) << 16).view(np.float32)
        return self.data.astype(np.float32)

    def times(self, x: Array, chunk: int = 4096) -> Array:
        """float64 ``x @ self.T`` for ``x`` of ``[m, cols]``, few rows at a time to bound memory."""
        x = x.astype(np.float64)
        parts = [
            x @ self.slice(i, i + chunk).dequantise().astype(np.float64).T
            for i in range(0, self.rows, chunk)
        ]
        return np.concatenate(parts, axis=-1)

    def recode(self, dtype: str) -> Matrix:
        """The same numbers as ``dtype``, which :func:`common_dtype` found for them."""
        coding = coding_of(dtype)
        if dtype == self.dtype:
            return self
        if coding is None:
            return Matrix(dtype, self.cols, self.dequantise())
        return Matrix(dtype, self.cols, encode_mixed(self.planes().recode(coding)))


def concatenate(matrices: Sequence[Matrix], dtype: str | None = None) -> Matrix:
    """One matrix of all rows. It has their :func:`common_dtype`, or that of more than they are."""
    dtype = dtype or common_dtype(matrix.dtype for matrix in matrices)
    recoded = [matrix.recode(dtype) for matrix in matrices]
    if len(recoded) == 1:
        return recoded[0]
    return Matrix(dtype, recoded[0].cols, np.concatenate([matrix.data for matrix in recoded]))


def _scaled(
    dtype: str, cols: int, data: Array, deviation: float, rng: np.random.Generator
) -> Matrix:
    """Random blocks of a file format, with scales and minima for a mean of 0 and ``deviation``."""
    block, coding = FORMATS[dtype], coding_of(dtype)
    assert coding is not None
    blocks = data.reshape(data.shape[0], -1, block.nbytes)
    sizes = rng.uniform(0.5, 1.5, (len(block.scalars), *blocks.shape[:2]))
    if coding.minima:
        middle = ((1 << coding.bits) - 1) / 2
        # Of the K formats minima are subtracted.
        sizes[1] *= middle if coding.scales == "k" else -middle

    def fill(factor: float) -> Matrix:
        for start, size in zip(block.scalars, sizes * factor, strict=True):
            blocks[..., start : start + 2] = size.astype(np.float16)[..., None].view(np.uint8)
        return Matrix(dtype, cols, data)

    return fill(deviation / _deviation(fill(1)))


def _random_mixed(
    coding: Coding, rows: int, cols: int, deviation: float, rng: np.random.Generator
) -> Array:
    most = 1 << coding.bits
    blocks = cols // BLOCK
    codes = rng.integers(0, most, (rows, blocks, BLOCK), dtype=np.uint8)
    if coding.bits == 8:
        low, high = codes.view(np.int8).reshape(rows, -1), None
    else:
        low, high = join(codes, coding)
    numbers = {
        name: rng.uniform(0.5, 1.5, (rows, size)).astype(np.float32)
        for name, (size, _) in plane_sizes(coding, cols).items()
        if name in ("scales", "supers")
    }
    scales, supers = numbers["scales"], numbers.get("supers")
    factors = scales if supers is None else supers
    if coding.minima:
        middle = 0 if coding.bits == 8 else (most - 1) / 2
        per_scale = coding.halves if supers is None else 1
        factors.reshape(rows, -1, 2, per_scale)[:, :, 1] *= np.float32(-middle)
    if supers is not None:
        scales = (scales * 42).astype(np.int8)

    def encoded() -> Array:
        kept = scales.astype(np.float16) if coding.scales == "h" else scales
        return encode_mixed(Planes(coding, low, high, kept, supers))

    factors *= np.float32(deviation / _deviation(Matrix(coding.mixed, cols, encoded())))
    return encoded()


def _deviation(matrix: Matrix) -> float:
    """Standard deviation of some of a matrix's weights."""
    return float(matrix.slice(0, 64).dequantise().std()) or 1.0
