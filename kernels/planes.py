"""A quantised weight taken apart: codes, their high bits, scales, super-scales, row by row.

Between a file's blocks and a layout. Codes of less than 8 bits lie as nibbles in pairs: byte j of a
block holds columns j and j + 16. Bits beyond the nibble lie in a plane of their own, likewise in
pairs: of one byte, the lower nibble belongs to columns p*i to p*i + p - 1, the upper to those 16
columns behind, where p is how many such pairs fit (4 with one bit, 2 with two).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .coding import BLOCK, SUPER, Coding
from .types import Array


@dataclass(frozen=True, eq=False)
class Planes:
    """Rows of one coding. Shapes: [rows, what a row has].

    ``low``: nibble pairs ``uint8 [rows, cols / 2]``, or codes ``int8 [rows, cols]`` of 8 bits.
    ``high``: ``uint8``, where the coding has high bits. ``scales``: for each block its scales, then
    its minima; float16, float32 or int8 by the coding's form. ``supers``: for each 256 columns the
    float32 that scales are times, then that of minima.
    """

    coding: Coding
    low: Array
    high: Array | None
    scales: Array
    supers: Array | None

    def codes(self) -> Array:
        """``[rows, blocks, 32]``, uint8 (int8 where they are signed)."""
        rows = self.low.shape[0]
        if self.coding.bits == 8:
            return self.low.reshape(rows, -1, BLOCK)
        pairs = self.low.reshape(rows, -1, BLOCK // 2)
        codes = np.concatenate([pairs & 15, pairs >> 4], axis=-1)
        if self.high is not None:
            bits = self.coding.high
            plane = self.high.reshape(rows, codes.shape[1], -1, 1)
            shifts = np.arange(0, 4, bits, dtype=np.uint8)
            mask = np.uint8((1 << bits) - 1)
            parts = [plane >> shifts & mask, plane >> (shifts + 4) & mask]
            codes |= np.concatenate([p.reshape(*pairs.shape) for p in parts], axis=-1) << 4
        return codes

    def factors(self) -> Array:
        """Scales and minima as float32 ``[rows, blocks * parts]``; exact."""
        if self.supers is None:
            return self.scales.astype(np.float32, copy=False)
        rows, coding = self.low.shape[0], self.coding
        per_super = SUPER // BLOCK
        codes = self.scales.reshape(rows, -1, per_super, coding.scalars, coding.halves)
        supers = self.supers.reshape(rows, -1, 1, coding.scalars, 1)
        return (codes.astype(np.float32) * supers).reshape(rows, -1)

    def dequantise(self) -> Array:
        """float32 ``[rows, cols]``, by the format's own arithmetic."""
        rows, coding = self.low.shape[0], self.coding
        values = self.codes().astype(np.float32)
        shape = values.shape[1]
        values = values.reshape(rows, shape, coding.halves, -1)
        factors = self.factors().reshape(rows, shape, coding.scalars, coding.halves, 1)
        if coding.zero:
            values -= coding.zero
        values *= factors[:, :, 0]
        if coding.minima:
            values += factors[:, :, 1]
        return values.reshape(rows, -1)

    def recode(self, coding: Coding) -> Planes:
        """The same numbers in a coding that :func:`~.coding.common_dtype` found for them."""
        own, rows = self.coding, self.low.shape[0]
        codes = self.codes()
        if coding.bits == 8:
            codes = codes.astype(np.int8) - np.int8(own.zero)
            low, high = codes.reshape(rows, -1), None
        else:
            if not coding.minima:
                codes = codes + np.uint8(coding.zero - own.zero)
            low, high = join(codes, coding)
        zero = own.zero if coding.minima and coding.bits < 8 else 0
        if coding.scales == "k" and self.supers is not None:
            plain = self.supers.reshape(rows, -1, own.scalars, 1)
            supers = _with_minima(plain, coding, zero).reshape(rows, -1)
            return Planes(coding, low, high, self._scales(self.scales, coding, -1), supers)
        scales = self.scales if coding.scales == own.scales else self.factors()
        return Planes(coding, low, high, self._scales(scales, coding, zero), None)

    def _scales(self, scales: Array, coding: Coding, zero: int) -> Array:
        """``scales`` with the halves and minima of ``coding``; a zero of -1 repeats the scales."""
        own, rows = self.coding, scales.shape[0]
        scales = scales.reshape(rows, -1, own.scalars, own.halves)
        scales = np.repeat(scales, coding.halves // own.halves, axis=-1)
        return _with_minima(scales, coding, zero).reshape(rows, -1)


def _with_minima(scales: Array, coding: Coding, zero: int) -> Array:
    """``[rows, n, scalars, halves]`` with minima of -zero * scale where there are none yet."""
    if scales.shape[2] == coding.scalars:
        return scales
    return np.concatenate([scales, scales * scales.dtype.type(-zero)], axis=2)


def join(codes: Array, coding: Coding) -> tuple[Array, Array | None]:
    """Nibble pairs and high plane of unsigned codes ``uint8 [rows, blocks, 32]``."""
    rows = codes.shape[0]
    nibbles = codes & 15 if coding.high else codes
    low = (nibbles[..., :16] | nibbles[..., 16:] << 4).reshape(rows, -1)
    if not coding.high:
        return low, None
    spread = spread_1 if coding.high == 1 else spread_2
    return low, spread(codes >> 4).reshape(rows, -1)


def spread_1(bits: Array) -> Array:
    """High plane of single bits: ``uint8 [..., 32]`` of 0 and 1 to ``[..., 4]``."""
    fours = np.ascontiguousarray(bits).view(np.uint32)
    # Bits 0, 8, 16 and 24 meet at 28 to 31; what else the product holds lies below.
    nibbles = (fours * np.uint32(0x10204080) >> 28).astype(np.uint8).view(np.uint32)
    return (nibbles[..., :1] | nibbles[..., 1:] << 4).view(np.uint8)


def spread_2(bits: Array) -> Array:
    """High plane of two bits a code: ``uint8 [..., 32]`` of 0 to 3 to ``[..., 8]``."""
    twos = np.ascontiguousarray(bits).view(np.uint16)
    nibbles = ((twos | twos >> 6) & 15).astype(np.uint8).view(np.uint64)
    return (nibbles[..., :1] | nibbles[..., 1:] << 4).view(np.uint8)
