"""What is left of a transposition when axes that stay together are one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

#: Names of the axes of the input, slowest first.
AXES = "abcd"


@dataclass(frozen=True)
class Axis:
    """``size`` elements; a step along it is ``step_in`` elements of x and ``step_out`` of y."""

    size: int
    step_in: int
    step_out: int


#: In place of an axis that is not there.
NONE = Axis(1, 0, 0)


@dataclass(frozen=True)
class Moved:
    """A transposition by what lies side by side.

    ``x`` is the fastest axis of the input, ``y`` that of the output, ``others`` the two that are
    left. With ``rows`` both are the same, and ``y`` is another axis.
    """

    x: Axis
    y: Axis
    others: tuple[Axis, Axis]
    rows: bool


def order_of(perm: str) -> tuple[int, ...]:
    """Axes of the input in the order of the output. Raises ``ValueError`` for no permutation."""
    if sorted(perm) != sorted(AXES):
        raise ValueError(f"perm={perm} is no order of the axes {AXES}")
    return tuple(AXES.index(name) for name in perm)


def moved(shape: Sequence[int], order: Sequence[int]) -> Moved:
    """``shape`` in ``order``: axes of one element left out, neighbours that stay so merged."""
    kept = [axis for axis in range(len(shape)) if shape[axis] > 1] or [len(shape) - 1]
    groups: list[list[int]] = []
    for axis in (axis for axis in order if axis in kept):
        place = kept.index(axis)
        if groups and place and groups[-1][-1] == kept[place - 1]:
            groups[-1].append(axis)
        else:
            groups.append([axis])
    axes, step = list[Axis](), 1
    for group in reversed(groups):
        size = prod(shape[axis] for axis in group)
        axes.append(Axis(size, prod(shape[group[-1] + 1 :]), step))
        step *= size
    # Fastest in the output first; the fastest in the input is the one that a step of 1 goes along.
    x = min(axes, key=lambda axis: axis.step_in)
    rows = x is axes[0]
    left = [axis for axis in axes if axis is not x]
    y, *others = left or [NONE]
    first, second = (*others, NONE, NONE)[:2]
    return Moved(x, y, (first, second), rows)
