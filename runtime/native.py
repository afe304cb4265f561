"""OpenCL's own calls for the hot path, through ctypes.

pyopencl spends 4 to 6 us of Python on a launch, and 0.2 ms on each kernel object, for which it
generates code. A decoder launches hundreds of kernels a token, each with arguments of its own. So
kernel objects are made, filled and enqueued here, by the very library that pyopencl is linked to.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from .opencl import cl, extension_module

#: An enqueue with everything bound; it returns OpenCL's status, 0 if all is well.
Enqueue = Callable[[], int]

# Looked up in pyopencl's extension module and what it is linked to: one loader, one set of drivers.
_library = ctypes.CDLL(extension_module())
_create_kernel = _library.clCreateKernel
_create_kernel.restype = ctypes.c_void_p
_set_arg = _library.clSetKernelArg
_enqueue = _library.clEnqueueNDRangeKernel


class StatusError(Exception):
    """A call of OpenCL failed; the message names call and status."""


def create_kernel(program: cl.Program, name: str) -> int:
    """A new kernel object's address, for :func:`release_kernel` to give back.

    Raises :class:`StatusError`.
    """
    status = ctypes.c_int32()
    kernel: int | None = _create_kernel(
        ctypes.c_void_p(program.int_ptr), name.encode(), ctypes.byref(status)
    )
    _check("clCreateKernel", status.value)
    if kernel is None:
        raise StatusError("clCreateKernel gave no kernel")
    return kernel


def release_kernel(kernel: int) -> None:
    _library.clReleaseKernel(ctypes.c_void_p(kernel))


def set_args(kernel: int, memory: Sequence[cl.MemoryObject]) -> None:
    """Set all arguments, buffers and images. Raises :class:`StatusError`."""
    size = ctypes.c_size_t(ctypes.sizeof(ctypes.c_void_p))
    for index, handle in enumerate(memory):
        value = ctypes.c_void_p(handle.int_ptr)
        status = _set_arg(ctypes.c_void_p(kernel), ctypes.c_uint(index), size, ctypes.byref(value))
        _check("clSetKernelArg", status)


def enqueue(
    queue: cl.CommandQueue,
    kernel: int,
    global_size: Sequence[int],
    local_size: Sequence[int],
    event: ctypes.c_void_p | None = None,
) -> Enqueue:
    """A launch of ``kernel`` as it is then; ``event`` gets the address of its event, if given."""
    rank = len(global_size)
    sizes = ctypes.c_size_t * rank
    return partial(
        _enqueue, ctypes.c_void_p(queue.int_ptr), ctypes.c_void_p(kernel), ctypes.c_uint(rank),
        None, sizes(*global_size), sizes(*local_size), ctypes.c_uint(0), None,
        None if event is None else ctypes.byref(event),
    )  # fmt: skip


def named(status: int) -> str:
    """A status as the specification spells it: ``INVALID_KERNEL (-48)``."""
    try:
        to_string: Any = cl.status_code.to_string
        return f"{to_string(status)} ({status})"
    except ValueError:
        return f"status {status}"


def _check(call: str, status: int) -> None:
    if status:
        raise StatusError(f"{call} failed: {named(status)}")
