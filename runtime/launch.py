"""Launches: a kernel with its arguments bound once, enqueued as often as needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ..errors import LaunchError
from .memory import Tensor
from .opencl import cl
from .program import Program


class Geometry(Protocol):
    """Global and local size of a launch."""

    @property
    def global_size(self) -> tuple[int, ...]: ...
    @property
    def local_size(self) -> tuple[int, ...]: ...


class Launch:
    """A kernel, its arguments and its geometry. It keeps its tensors alive.

    Launches of one program share its kernel object, because making one costs pyopencl 0.2 ms of
    generated code; what the kernel holds is set again only when another launch used it last.

    Raises :class:`~clkiln.errors.LaunchError` where the driver refuses the arguments, and
    :class:`~clkiln.errors.DeviceError` for a tensor of another device.
    """

    def __init__(self, program: Program, tensors: Sequence[Tensor], geometry: Geometry) -> None:
        self.program, self.tensors = program, tuple(tensors)
        self.geometry = geometry
        self._queue = program.context.queue
        for tensor in tensors:
            tensor.belongs_to(program.context)
        self._kernel = program.kernel()
        if self._kernel.num_args != len(self.tensors):
            raise LaunchError(
                f"{program.label}: {len(self.tensors)} arguments for {self._kernel.num_args}"
            )
        self._bind()

    def _bind(self) -> None:
        """Set what differs from the launch before: layers share all but weights and caches."""
        kernel, before = self._kernel, self.program.bound
        self.program.bound = None  # until all are set: half of ours among another launch's
        held = before.tensors if isinstance(before, Launch) else (None,) * len(self.tensors)
        try:
            for index, tensor in enumerate(self.tensors):
                if tensor is not held[index]:
                    kernel.set_arg(index, tensor.handle)
        except cl.Error as error:
            raise LaunchError(f"{self.program.label}: bad arguments: {error}") from error
        self.program.bound = self

    def enqueue(self, geometry: Geometry | None = None) -> cl.Event:
        """Enqueue once, with another geometry where the sizes of this step ask for it."""
        if self.program.bound is not self:
            self._bind()
        shape = geometry or self.geometry
        try:
            return cl.enqueue_nd_range_kernel(
                self._queue, self._kernel, shape.global_size, shape.local_size
            )
        except cl.Error as error:
            raise LaunchError(
                f"{self.program.label}: launch of {shape.global_size} by {shape.local_size} "
                f"failed on {self.program.context.info.name}: {error}"
            ) from error


def event_seconds(event: cl.Event) -> float:
    """Run time of a finished event in seconds, of a queue with profiling.

    Raises :class:`~clkiln.errors.LaunchError` where the driver has none to give.
    """
    try:
        return float(event.profile.end - event.profile.start) * 1e-9
    except cl.Error as error:
        raise LaunchError(f"the driver did not time a launch: {error}") from error
