"""Launches: a kernel with its arguments bound once, enqueued as often as needed."""

from __future__ import annotations

import ctypes
import math
import weakref
from collections.abc import Sequence
from typing import Protocol

from ..errors import LaunchError
from . import native
from .memory import Tensor, Texels
from .native import Enqueue
from .opencl import cl
from .program import Program

__all__ = ["Enqueue", "Geometry", "Launch", "event_seconds"]


class Geometry(Protocol):
    """Global and local size of a launch."""

    @property
    def global_size(self) -> tuple[int, ...]: ...
    @property
    def local_size(self) -> tuple[int, ...]: ...


class Launch:
    """A kernel, its arguments and its geometry. It keeps its tensors alive.

    Raises :class:`~clkiln.errors.LaunchError` where the driver refuses the arguments or the device
    pretends to have less than the kernel takes, and :class:`~clkiln.errors.DeviceError` for a
    tensor of another device.
    """

    def __init__(
        self, program: Program, tensors: Sequence[Tensor | Texels], geometry: Geometry
    ) -> None:
        self.program, self.tensors = program, tuple(tensors)
        self.geometry = geometry
        for tensor in tensors:
            tensor.belongs_to(program.context)
        #: Only what is pretended is looked at here: real limits are the driver's own affair.
        self._limited = bool(program.context.info.limits)
        if self._limited:
            _check_memory(program)
            _check_size(program, geometry)
        expected = program.kernel().num_args
        if expected != len(self.tensors):
            raise LaunchError(f"{program.label}: {len(self.tensors)} arguments for {expected}")
        try:
            self._kernel = native.create_kernel(program.handle, program.name)
            weakref.finalize(self, native.release_kernel, self._kernel)
            native.set_args(self._kernel, [tensor.handle for tensor in self.tensors])
        except native.StatusError as error:
            raise LaunchError(f"{program.label}: bad arguments: {error}") from error

    def prepare(self, geometry: Geometry | None = None) -> Enqueue:
        """The launch with everything bound: call it often, and :meth:`check` what it returns.

        It is good for as long as the launch lives.
        """
        shape = geometry or self.geometry
        if self._limited:
            _check_size(self.program, shape)
        queue = self.program.context.queue
        return native.enqueue(queue, self._kernel, shape.global_size, shape.local_size)

    def check(self, status: int, geometry: Geometry | None = None) -> None:
        """Raise :class:`~clkiln.errors.LaunchError` for a status that is not 0."""
        if status:
            shape = geometry or self.geometry
            raise LaunchError(
                f"{self.program.label}: launch of {shape.global_size} by {shape.local_size} "
                f"failed on {self.program.context.info.name}: {native.named(status)}"
            )

    def enqueue(self, geometry: Geometry | None = None) -> None:
        """Enqueue once, with another geometry where the sizes of this step ask for it."""
        self.check(self.prepare(geometry)(), geometry)

    def enqueue_timed(self) -> cl.Event:
        """Enqueue once; the event tells when the device began and ended."""
        shape, event = self.geometry, ctypes.c_void_p()
        queue = self.program.context.queue
        call = native.enqueue(queue, self._kernel, shape.global_size, shape.local_size, event)
        self.check(call())
        return cl.Event.from_int_ptr(event.value or 0, retain=False)


def _check_memory(program: Program) -> None:
    """Raise :class:`~clkiln.errors.LaunchError` if the kernel takes too much local memory."""
    info, taken = program.context.info, program.local_memory()
    if taken > info.local_memory:
        raise LaunchError(
            f"{program.label}: the kernel takes {taken} bytes of local memory, {info.name} has "
            f"{info.local_memory}{info.limits.because('local_memory')}"
        )


def _check_size(program: Program, geometry: Geometry) -> None:
    """Raise :class:`~clkiln.errors.LaunchError` if the device takes no such work-group."""
    info, size = program.context.info, geometry.local_size
    items, most = math.prod(size), info.max_work_group_size
    if items > most:
        why = info.limits.because("max_work_group_size")
        text = f"a work-group of {items} work-items, {info.name} takes {most}{why}"
    elif any(n > allowed for n, allowed in zip(size, info.max_work_item_sizes, strict=False)):
        why = info.limits.because("max_work_item_sizes")
        text = f"a local size of {size}, {info.name} takes {info.max_work_item_sizes}{why}"
    else:
        return
    raise LaunchError(f"{program.label}: launch with {text}")


def event_seconds(event: cl.Event) -> float:
    """Run time of a finished event in seconds, of a queue with profiling.

    Raises :class:`~clkiln.errors.LaunchError` where the driver has none to give.
    """
    try:
        return float(event.profile.end - event.profile.start) * 1e-9
    except cl.Error as error:
        raise LaunchError(f"the driver did not time a launch: {error}") from error
