"""Layouts: where a weight's numbers lie for a kernel, and packing a matrix into one.

Rows are interleaved by ``rows`` so that one vector load fetches the same column, or pair of them,
of that many rows, in a buffer or in an image of RGBA texels; NumPy only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .coding import FLOATS, STORED_BITS, Coding, coding_of
from .formats import plane_sizes
from .types import TEXEL_BYTES, Argument, Array, Memory
from .weights import Matrix

#: Texels to a row of a folded image: powers of two, from what any device has to what most have.
WIDTHS = (2048, 4096, 8192)
#: Numbers that are packed at a time, so that what lies between file and layout stays in a cache.
CHUNK = 1 << 18


def layout_space(dtype: str, memory: Memory) -> dict[str, tuple[int, ...]]:
    """What a search may choose of a layout: rows ``R``, bits of a scale ``S``, texels ``IW``."""
    coding = coding_of(dtype)
    space: dict[str, tuple[int, ...]] = {"R": (4, 8, 16)}
    if coding:
        space["S"] = STORED_BITS[coding.scales]
    if memory == "image2d":
        space["IW"] = WIDTHS
        if coding:
            space["R"] = (16,)  # sixteen codes are one texel
        elif dtype == "bf16":
            space["R"] = (8, 16)  # eight numbers are one texel
    return space


@dataclass(frozen=True)
class Layout:
    """Where a weight's numbers lie. The text form (``q4_1 buffer r16 s16``) names it in the cache.

    ``rows``: rows interleaved (the width of a vector load). ``scale_bits``: how scales are stored,
    0 for float weights; 16 and 32 are floats, 8 are bytes beside float32 super-scales. ``paired``:
    groups of the first and second half of the rows alternate, so that one work-item finds gate and
    up side by side. ``width``: texels in a row of the image.
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

    @cached_property
    def coding(self) -> Coding | None:
        return coding_of(self.dtype)

    @property
    def halves(self) -> int:
        """Parts of the rows whose groups alternate."""
        return 2 if self.paired else 1

    def groups(self, rows: int) -> int:
        """Row groups after padding; for paired layouts of both halves together."""
        return self.halves * -(-(rows // self.halves) // self.rows)

    def memory_of(self, part: str) -> Memory:
        """Where a part lies: codes and their high bits in the image, scales always in buffers."""
        return self.memory if part in ("q", "h") else "buffer"

    def parts(self, cols: int) -> dict[str, tuple[int, str]]:
        """Physical arrays: numbers in a row of ``cols`` columns, and their NumPy type.

        ``q``: floats or codes; ``h``: high bits of codes; ``s``: scales; ``d``: super-scales.
        """
        if self.coding is None:
            return {"q": (cols, FLOATS[self.dtype])}
        sizes = plane_sizes(self.coding, cols)
        parts = {"q": sizes["low"]}
        if "high" in sizes:
            parts["h"] = sizes["high"]
        scales, _ = sizes["scales"]
        parts["s"] = (scales, "int8" if self.scale_bits == 8 else f"float{self.scale_bits}")
        if self.scale_bits == 8:
            parts["d"] = sizes["supers"]
        return parts

    def arguments(self, name: str, rows: int, cols: int) -> tuple[Argument, ...]:
        """The kernel arguments of a packed weight of ``rows`` x ``cols`` called ``name``."""
        found = []
        for part, (per_row, kind) in self.parts(cols).items():
            count = self.groups(rows) * per_row * self.rows
            memory = self.memory_of(part)
            shape: tuple[int, ...] = (count,)
            if memory == "image2d":
                nbytes = count * np.dtype(kind).itemsize
                kind = kind if kind in TEXEL_BYTES else "uint32"
                texels = -(-nbytes // TEXEL_BYTES[kind])
                shape = (-(-texels // self.width), self.width, 4)
            found.append(Argument(f"{name}.{part}", "weight", kind, shape, memory, streams=True))
        return tuple(found)


def pack(matrix: Matrix, layout: Layout) -> dict[str, Array]:
    """Physical arrays of ``matrix`` in ``layout``, by part: those of :meth:`Layout.parts`.

    Row groups are padded with zeros (codes and scales), which add nothing to a product.
    """
    if matrix.dtype != layout.dtype:
        raise ValueError(f"a {matrix.dtype} matrix can't be packed as {layout}")
    kinds, size = layout.parts(matrix.cols), layout.rows
    places = {a.name.partition(".")[2]: a for a in layout.arguments("", matrix.rows, matrix.cols)}
    packed = {part: np.zeros(place.shape, place.dtype) for part, place in places.items()}
    halves = layout.halves
    per_half = matrix.rows // halves
    views = {
        part: packed[part].reshape(-1).view(kind)[: layout.groups(matrix.rows) * n * size]
        for part, (n, kind) in kinds.items()
    }
    for half in range(halves):
        for start, stop in _chunks(per_half, matrix.cols, size):
            rows = matrix.slice(half * per_half + start, half * per_half + stop)
            for part, numbers in _numbers(rows, layout).items():
                groups = views[part].reshape(-1, halves, numbers.shape[1], size)
                _interleave(numbers, groups[start // size : -(-stop // size), half])
    return packed


def _chunks(rows: int, cols: int, size: int) -> Iterator[tuple[int, int]]:
    step = max(CHUNK // (cols * size), 1) * size
    return ((start, min(start + step, rows)) for start in range(0, rows, step))


def _numbers(matrix: Matrix, layout: Layout) -> dict[str, Array]:
    """What :meth:`Layout.parts` names, row by row."""
    if layout.coding is None:
        return {"q": matrix.data}
    planes = matrix.planes()
    numbers = {"q": planes.low}
    if planes.high is not None:
        numbers["h"] = planes.high
    numbers["s"] = planes.factors() if layout.scale_bits == 32 else planes.scales
    if layout.scale_bits == 8 and planes.supers is not None:
        numbers["d"] = planes.supers
    return numbers


def _interleave(rows: Array, out: Array) -> None:
    """``[rows, n]`` into ``out [groups, n, R]``: one element of each of R rows side by side."""
    size, n = out.shape[2], rows.shape[1]
    full = rows.shape[0] // size
    out[:full] = rows[: full * size].reshape(full, size, n).transpose(0, 2, 1)
    if full < out.shape[0]:
        rest = rows[full * size :]
        out[full, :, : rest.shape[0]] = rest.T
