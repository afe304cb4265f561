"""Weight matrices as model files hold them, and the layouts in which kernels read them.

A *dtype* says how numbers are coded (GGUF's block formats, 32 columns to a block); a *layout* says
where they lie for a kernel: rows are interleaved by ``rows`` so that one vector load fetches the
same column of that many rows, in a buffer or in an image of RGBA texels. ``pack`` goes from one to
the other; NumPy only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .types import TEXEL_BYTES, Argument, Array, Memory

#: Columns that share a scale in the quantised formats.
BLOCK = 32
#: Bytes of one block in the file, and how many float16 numbers (scale, minimum) it starts with.
BLOCK_BYTES = {"q8_0": 34, "q4_0": 18, "q4_1": 20}
_SCALARS = {"q8_0": 1, "q4_0": 1, "q4_1": 2}
DTYPES = ("f32", "f16", *BLOCK_BYTES)
_FLOATS = {"f32": np.float32, "f16": np.float16}


@dataclass(frozen=True, eq=False)
class Matrix:
    """A weight: floats ``[rows, cols]``, or raw blocks ``uint8 [rows, bytes of a row]``."""

    dtype: str
    cols: int
    data: Array

    @property
    def rows(self) -> int:
        return int(self.data.shape[0])

    @property
    def quantised(self) -> bool:
        return self.dtype in BLOCK_BYTES

    @classmethod
    def random(cls, dtype: str, rows: int, cols: int, rng: np.random.Generator) -> Matrix:
        """Random weights whose products with unit-variance vectors have variance about one."""
        scale = 1 / np.sqrt(cols)
        if dtype in _FLOATS:
            data = rng.standard_normal((rows, cols), dtype=np.float32) * np.float32(scale)
            return cls(dtype, cols, data.astype(_FLOATS[dtype]))
        if cols % BLOCK:
            raise ValueError(f"{dtype} needs a multiple of {BLOCK} columns, not {cols}")
        step = scale / (74 if dtype == "q8_0" else 4.6)  # standard deviation of the codes
        blocks = cols // BLOCK
        raw = rng.integers(0, 256, (rows, blocks, BLOCK_BYTES[dtype]), dtype=np.uint8)
        d = (rng.uniform(0.5, 1.5, (rows, blocks)) * step).astype(np.float16)
        raw[..., 0:2] = d[..., None].view(np.uint8)
        if dtype == "q4_1":
            m = (d.astype(np.float32) * rng.uniform(-9, -6, d.shape)).astype(np.float16)
            raw[..., 2:4] = m[..., None].view(np.uint8)
        return cls(dtype, cols, raw.reshape(rows, -1))

    def scales(self) -> Array:
        """float16 ``[rows, blocks, 1 or 2]``: the scale, and the format's minimum if it has one."""
        n = 2 * _SCALARS[self.dtype]
        return np.ascontiguousarray(self._blocks[..., :n]).view(np.float16)

    def codes(self) -> Array:
        """``int8 [rows, cols]`` (q8_0), or ``uint8 [rows, blocks, 16]``: columns j and j + 16."""
        codes = self._blocks[..., 2 * _SCALARS[self.dtype] :]
        if self.dtype != "q8_0":
            return codes
        return codes.view(np.int8).reshape(self.rows, self.cols)

    @cached_property
    def _blocks(self) -> Array:
        return self.data.reshape(self.rows, self.cols // BLOCK, BLOCK_BYTES[self.dtype])

    def slice(self, start: int, stop: int) -> Matrix:
        return Matrix(self.dtype, self.cols, self.data[start:stop])

    def dequantise(self) -> Array:
        """float32 ``[rows, cols]``; exact, as every code times a float16 fits into a float32."""
        if not self.quantised:
            return self.data.astype(np.float32)
        scales = self.scales().astype(np.float32)
        if self.dtype == "q8_0":
            codes = self.codes().reshape(self.rows, -1, BLOCK).astype(np.float32)
            return (codes * scales).reshape(self.rows, self.cols)
        pairs = self.codes()
        nibbles = np.concatenate([pairs & 15, pairs >> 4], axis=-1).astype(np.float32)
        if self.dtype == "q4_0":
            return ((nibbles - 8) * scales).reshape(self.rows, self.cols)
        values = nibbles * scales[..., :1] + scales[..., 1:]
        return values.reshape(self.rows, self.cols)

    def times(self, x: Array, chunk: int = 4096) -> Array:
        """float64 ``x @ self.T`` for ``x`` of ``[m, cols]``, few rows at a time to bound memory."""
        x = x.astype(np.float64)
        parts = [
            x @ self.slice(i, i + chunk).dequantise().astype(np.float64).T
            for i in range(0, self.rows, chunk)
        ]
        return np.concatenate(parts, axis=-1)


def concatenate(matrices: Sequence[Matrix]) -> Matrix:
    """One matrix of all rows. Where dtypes differ, all are widened to float32, which is exact."""
    first = matrices[0]
    if len(matrices) == 1:
        return first
    if all(m.dtype == first.dtype for m in matrices):
        return Matrix(first.dtype, first.cols, np.concatenate([m.data for m in matrices]))
    return Matrix("f32", first.cols, np.concatenate([m.dequantise() for m in matrices]))


@dataclass(frozen=True)
class Layout:
    """Where a weight's numbers lie. The text form (``q4_1 buffer r16 s16``) names it in the cache.

    ``rows``: rows interleaved (the width of a vector load). ``scale_bits``: how scales are stored,
    0 for float weights. ``paired``: groups of the first and second half of the rows alternate, so
    that one work-item finds gate and up side by side. ``width``: texels in a row of the image.
    """

    dtype: str
    memory: Memory
    rows: int
    scale_bits: int = 0
    paired: bool = False
    width: int = 0

    def __str__(self) -> str:
        words = [self.dtype, self.memory, f"r{self.rows}"]
        if self.scale_bits:
            words.append(f"s{self.scale_bits}")
        if self.width:
            words.append(f"w{self.width}")
        if self.paired:
            words.append("paired")
        return " ".join(words)

    @classmethod
    def parse(cls, text: str) -> Layout:
        """Inverse of ``str``. Raises ``ValueError`` for anything else."""
        dtype, memory, rows, *rest = text.split(" ")
        numbers = {word[:1]: int(word[1:]) for word in rest if word != "paired"}
        layout = cls(
            dtype,
            "image2d" if memory == "image2d" else "buffer",
            int(rows[1:]),
            numbers.get("s", 0),
            "paired" in rest,
            numbers.get("w", 0),
        )
        if str(layout) != text:
            raise ValueError(f"not a weight layout: {text!r}")
        return layout

    @property
    def element(self) -> str:
        """NumPy dtype of the physical array that holds the weights or their codes."""
        if self.dtype in _FLOATS:
            return np.dtype(_FLOATS[self.dtype]).name
        if self.memory == "image2d":
            return "uint32"
        return "int8" if self.dtype == "q8_0" else "uint8"

    def groups(self, rows: int) -> int:
        """Row groups after padding; for paired layouts of both halves together."""
        if self.paired:
            return 2 * -(-(rows // 2) // self.rows)
        return -(-rows // self.rows)

    def arguments(self, name: str, rows: int, cols: int) -> tuple[Argument, ...]:
        """The kernel arguments of a packed weight of ``rows`` x ``cols`` called ``name``."""
        groups = self.groups(rows)
        per_row = cols // 2 if self.dtype.startswith("q4") else cols
        count = groups * per_row * self.rows
        if self.memory == "buffer":
            shape: tuple[int, ...] = (count,)
        else:
            nbytes = count * (1 if self.scale_bits else np.dtype(self.element).itemsize)
            texels = -(-nbytes // TEXEL_BYTES[self.element])
            shape = (-(-texels // self.width), self.width, 4)
        data = Argument(f"{name}.q", "weight", self.element, shape, self.memory, streams=True)
        if not self.scale_bits:
            return (data,)
        scale_shape = (groups * (cols // BLOCK) * _SCALARS[self.dtype] * self.rows,)
        scale = Argument(
            f"{name}.s", "weight", f"float{self.scale_bits}", scale_shape, streams=True
        )
        return data, scale


def pack(matrix: Matrix, layout: Layout) -> dict[str, Array]:
    """Physical arrays of ``matrix`` in ``layout``: ``q`` (numbers or codes) and ``s`` (scales).

    Row groups are padded with zeros (codes and scales), which add nothing to a product.
    """
    if matrix.dtype != layout.dtype:
        raise ValueError(f"a {matrix.dtype} matrix can't be packed as {layout}")
    if not matrix.quantised:
        return {"q": _place(_interleave(matrix.data, layout), layout)}
    codes = matrix.codes() if matrix.dtype == "q8_0" else matrix.codes().reshape(matrix.rows, -1)
    scales = matrix.scales().reshape(matrix.rows, -1)
    scale_type = np.float16 if layout.scale_bits == 16 else np.float32
    return {
        "q": _place(_interleave(codes, layout), layout),
        "s": _interleave(scales, layout).astype(scale_type, copy=False).reshape(-1),
    }


def _interleave(rows: Array, layout: Layout) -> Array:
    """``[rows, n]`` to ``[groups, n, R]``: one element of each of R rows side by side."""
    halves = np.split(rows, 2) if layout.paired else [rows]
    size, n = layout.rows, rows.shape[1]
    per_half = -(-halves[0].shape[0] // size)
    out = np.zeros((per_half, len(halves), n, size), rows.dtype)
    for h, half in enumerate(halves):
        full = half.shape[0] // size
        out[:full, h] = half[: full * size].reshape(full, size, n).transpose(0, 2, 1)
        if full < per_half:
            rest = half[full * size :]
            out[full, h, :, : rest.shape[0]] = rest.T
    return out.reshape(-1, n, size)


def _place(data: Array, layout: Layout) -> Array:
    """Flat for a buffer; ``(height, width, 4)`` with zeros behind the end for an image."""
    if layout.memory == "buffer":
        return data.reshape(-1)
    flat = data.reshape(-1).view(np.uint32) if layout.scale_bits else data.reshape(-1)
    per_row = 4 * layout.width
    height = -(-flat.size // per_row)
    if flat.size != height * per_row:
        flat = np.concatenate([flat, np.zeros(height * per_row - flat.size, flat.dtype)])
    return flat.reshape(height, layout.width, 4)
