"""What several operations say of local sizes and vector widths."""

from __future__ import annotations

from collections.abc import Iterable

from .types import DeviceLimits

#: Local sizes that reductions accept: powers of two.
LOCAL_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
#: Vector widths of OpenCL C.
WIDTHS = (1, 2, 4, 8, 16)


def dividing(numbers: Iterable[int], *totals: int) -> tuple[int, ...]:
    """Those of ``numbers`` that divide each of ``totals`` (a total of 0 is divided by any)."""
    return tuple(n for n in numbers if all(total % n == 0 for total in totals))


def safe_items(limits: DeviceLimits, wanted: int, memory_per_item: int = 0) -> int:
    """A local size that works everywhere: 1 on a CPU, else a power of two, at most ``wanted``.

    A CPU runs the items of a group one after the other on one core, so there the vectors of a
    single item do the work. ``memory_per_item`` is what an item adds to the group's local memory.
    """
    if limits.type == "cpu":
        return 1
    most = min(wanted, limits.max_work_group_size, *limits.max_work_item_sizes[:1])
    if memory_per_item:
        most = min(most, limits.local_memory // memory_per_item)
    return 1 << max(most, 1).bit_length() - 1


def safe_width(limits: DeviceLimits, widths: Iterable[int]) -> int:
    """The widest of ``widths`` up to 8 on a CPU (a 256-bit register), up to 4 elsewhere."""
    most = 8 if limits.type == "cpu" else 4
    return max(width for width in widths if width <= most)


def too_many_items(items: int, useful: int) -> str | None:
    """A reason if more than half of ``items`` work-items could never have anything to do."""
    if items > 1 and items >= 2 * useful:
        return f"{items} work-items for {useful} pieces of work"
    return None
