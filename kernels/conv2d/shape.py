"""The sizes of a convolution, and how its input lies for a window that moves over it."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import lru_cache

from ..activation import ACTIVATIONS
from ..types import Workload

_PAIR = re.compile(r"(\d+)x(\d+)")
#: Offsets in a row of the input are 32-bit integers.
_MOST_ELEMENTS = 1 << 31


@dataclass(frozen=True)
class Conv:
    """``n`` images of ``ih`` x ``iw`` pixels; pairs are of rows and columns.

    ``cig`` and ``cog`` are the input and output channels of one of the ``groups``.
    """

    n: int
    ih: int
    iw: int
    ci: int
    co: int
    groups: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    pad: tuple[int, int]
    dilation: tuple[int, int]

    @property
    def oh(self) -> int:
        return self._out(0, self.ih)

    @property
    def ow(self) -> int:
        return self._out(1, self.iw)

    def _out(self, side: int, size: int) -> int:
        reach = self.dilation[side] * (self.kernel[side] - 1) + 1
        return (size + 2 * self.pad[side] - reach) // self.stride[side] + 1

    @property
    def cig(self) -> int:
        return self.ci // self.groups

    @property
    def cog(self) -> int:
        return self.co // self.groups

    @property
    def depthwise(self) -> bool:
        """Each channel is its own group, with one output."""
        return self.groups > 1 and self.cig == self.cog == 1

    @property
    def window(self) -> int:
        """Elements of the input that make one of the output."""
        return self.kernel[0] * self.kernel[1] * self.cig

    @property
    def pixels(self) -> int:
        """Pixels of the output."""
        return self.n * self.oh * self.ow

    @property
    def runs(self) -> tuple[int, int]:
        """A row of a window as so many runs of elements that lie side by side, and their length.

        Without padding, dilation and groups it is a single run over columns and channels.
        """
        if self.pad[1] == 0 and self.dilation[1] == 1 and self.groups == 1:
            return 1, self.kernel[1] * self.ci
        return self.kernel[1], self.cig

    def in_one_row(self) -> Conv:
        """The same sums with the pixels of all images as one row, where the window is a pixel."""
        alone = self.kernel == self.stride == (1, 1) and self.pad == (0, 0)
        if not alone or self.n * self.ih * self.iw * self.ci >= _MOST_ELEMENTS:
            return self
        return replace(self, n=1, ih=1, iw=self.n * self.ih * self.iw)


@lru_cache(maxsize=256)
def conv_of(workload: Workload) -> Conv:
    """The sizes of a ``conv2d`` workload. Raises ``ValueError`` for one that makes no sense."""
    conv = Conv(
        n=workload.size("n"),
        ih=workload.size("ih"),
        iw=workload.size("iw"),
        ci=workload.size("ci"),
        co=workload.size("co"),
        groups=workload.size("groups"),
        kernel=_pair(workload, "kernel"),
        stride=_pair(workload, "stride"),
        pad=_pair(workload, "pad"),
        dilation=_pair(workload, "dilation"),
    )
    if workload.tag("act") not in ACTIVATIONS:
        raise ValueError(f"act={workload.tag('act')} is none of {', '.join(ACTIVATIONS)}")
    if conv.ci % conv.groups or conv.co % conv.groups:
        raise ValueError(f"{conv.groups} groups of {conv.ci} and {conv.co} channels")
    if min(*conv.kernel, *conv.stride, *conv.dilation) < 1:
        raise ValueError("kernel, stride and dilation are at least 1x1")
    if min(conv.oh, conv.ow) < 1:
        raise ValueError(f"a window of {conv.kernel} never fits in {conv.ih} x {conv.iw} pixels")
    return conv


def _pair(workload: Workload, name: str) -> tuple[int, int]:
    match = _PAIR.fullmatch(workload.tag(name))
    if match is None:
        raise ValueError(f"{name}={workload.tag(name)}: write rows and columns, as in 3x3")
    return int(match[1]), int(match[2])
