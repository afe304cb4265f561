"""Matrices that are too large for a device, cut along their rows into pieces that are not."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import product

from .feasible import argument_limit
from .layout import WIDTHS, Layout, layout_space
from .types import DeviceLimits, Memory

#: Pieces begin at multiples of it, so that no row group of any layout is cut.
ALIGNMENT = 16


def pieces(
    n: int, k: int, dtype: str, limits: DeviceLimits, *, paired: bool = False
) -> list[tuple[int, int]]:
    """Pieces of an ``n`` x ``k`` matrix, in order: the first row and that behind the last.

    A single one if the device can hold all, or not even :data:`ALIGNMENT` rows, which is said by
    the configurations that it can't run. Else as few as can be, and of one size but the last,
    because each size is a workload to tune. Of a ``paired`` matrix ``n`` are the rows of each half;
    the halves are cut alike.

    A piece fits into buffers in every layout. Where the device has images it fits into them, too:
    into those of :data:`~.layout.WIDTHS` that hold most; others may be out, as any configuration
    may. Where no image holds :data:`ALIGNMENT` rows, they don't count.
    """
    units = most = -(-n // ALIGNMENT)
    for memory, widths in _memories(limits):
        fitting = max(
            _fitting(most, k, [*_layouts(dtype, memory, width, paired)], limits) for width in widths
        )
        most = fitting or most
    count = -(-units // most)
    size = -(-units // count) * ALIGNMENT
    return [(start, min(start + size, n)) for start in range(0, n, size)]


def _memories(limits: DeviceLimits) -> Iterator[tuple[Memory, tuple[int, ...]]]:
    """Where a weight may lie on a device, and how wide."""
    yield "buffer", (0,)
    if "images" in limits.features:
        yield "image2d", WIDTHS


def _layouts(dtype: str, memory: Memory, width: int, paired: bool) -> Iterator[Layout]:
    """Every layout, with the most rows interleaved: fewer pad less, and are the same otherwise."""
    space = layout_space(dtype, memory)
    for rows, scale_bits in product(space["R"][-1:], space.get("S", (0,))):
        yield Layout(dtype, memory, rows, scale_bits, paired, width)


def _fitting(most: int, k: int, layouts: Sequence[Layout], limits: DeviceLimits) -> int:
    """How many times :data:`ALIGNMENT` rows fit in all ``layouts``, up to ``most``."""

    def exceeds(units: int) -> bool:
        return any(
            argument_limit(argument, limits)
            for layout in layouts
            for argument in layout.arguments("w", units * ALIGNMENT * layout.halves, k)
        )

    if not exceeds(most):
        return most
    return bisect_left(range(1, most), True, key=exceeds)
