"""An open device: one OpenCL context, one in-order queue, one memory budget."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from numpy.typing import DTypeLike, NDArray

from ..errors import LaunchError
from .device import Device, memory_budget
from .memory import Memory, MemoryBudget, Tensor
from .opencl import cl


class Context:
    """What programs and tensors of one device belong to. Use as a context manager, or ``close``."""

    def __init__(
        self, device: Device, *, budget: int | None = None, profiling: bool = False
    ) -> None:
        self.device, self.info, self.profiling = device, device.info, profiling
        limit = memory_budget(device.info) if budget is None else budget
        why = device.info.limits.because("max_alloc")
        self.memory = MemoryBudget(limit, device.info.max_alloc, why)
        with self.errors("opening the device"):
            self.handle = cl.Context([device.handle])
            properties: Any = cl.command_queue_properties.PROFILING_ENABLE if profiling else 0
            self.queue = cl.CommandQueue(self.handle, properties=properties)
        #: Whether its compiler has built a program: one that fails later has itself to blame.
        self.has_compiled = False

    def __enter__(self) -> Context:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Wait for what runs; the driver frees the rest with the last reference."""
        self.finish()

    def empty(
        self, shape: Sequence[int], dtype: DTypeLike, memory: Memory = "buffer", *, what: str
    ) -> Tensor:
        """A tensor with undefined content. Raises :class:`~clkiln.errors.OutOfDeviceMemory`."""
        return Tensor(self, shape, dtype, memory, what=what)

    def upload(self, data: NDArray[Any], memory: Memory = "buffer", *, what: str) -> Tensor:
        """A tensor with the content of ``data``. Raises as :meth:`empty`."""
        return Tensor(self, data.shape, data.dtype, memory, data=data, what=what)

    def finish(self) -> None:
        """Wait until everything enqueued is done."""
        with self.errors("waiting for the device"):
            self.queue.finish()

    @contextmanager
    def errors(self, doing: str) -> Iterator[None]:
        """Turn a driver's error into a :class:`LaunchError` that says what was going on."""
        try:
            yield
        except cl.Error as error:
            raise LaunchError(f"{doing} failed on {self.info.name}: {error}") from error
