"""Machine code for NVIDIA devices, made from PTX by the driver's own linker.

NVIDIA's OpenCL calls a program's PTX its binary, and compiles it again at every load: 20 to 300 ms
a kernel on an H200. The driver library links the same PTX into a cubin, which its OpenCL loads in
half a millisecond. The functions called are those of the CUDA driver API's module "JIT linking";
no toolkit is needed.
"""

from __future__ import annotations

import ctypes
import logging
import re
import threading

logger = logging.getLogger(__name__)

LIBRARY = "libcuda.so.1"
#: What PTX says it is for: ``.target sm_90, texmode_independent``.
_TARGET = re.compile(rb"^\.target\s+sm_(\d+)([a-z]?)", re.MULTILINE)
#: Bytes in which it says so, before any code.
_HEAD = 4096
# CUjit_option, CUjitInputType, and what CUjit_target adds for an architecture's own features.
_OPTION_TARGET, _INPUT_PTX, _ACCELERATED = 9, 1, 1 << 16


def is_ptx(binary: bytes) -> bool:
    """Whether ``binary`` is PTX, which a driver would compile at every load."""
    return not binary.startswith(b"\x7fELF") and _TARGET.search(binary, 0, _HEAD) is not None


class Linker:
    """Links PTX into cubins. Made when first needed: it opens a CUDA context, in 0.1 s.

    Threads may share one; each links with the same context.
    """

    def __init__(self) -> None:
        self._library: ctypes.CDLL | None = None
        self._context = ctypes.c_void_p()
        self._lock = threading.Lock()

    def link(self, ptx: bytes) -> bytes | None:
        """The cubin of ``ptx``; None where it is no PTX or the driver won't make one."""
        target = _TARGET.search(ptx, 0, _HEAD)
        if target is None:
            return None
        try:
            return self._linked(ptx, int(target[1]) + (_ACCELERATED if target[2] == b"a" else 0))
        except (OSError, AttributeError, _CudaError) as error:
            # No libcuda, one without the linker, or a driver that refuses: PTX works as well.
            logger.debug("no cubin: %s", error)
            return None

    def _linked(self, ptx: bytes, target: int) -> bytes:
        cuda = self._open()
        _check("cuCtxSetCurrent", cuda.cuCtxSetCurrent(self._context))
        state = ctypes.c_void_p()
        options = (ctypes.c_int * 1)(_OPTION_TARGET)
        values = (ctypes.c_void_p * 1)(target)
        created = cuda.cuLinkCreate_v2(ctypes.c_uint(1), options, values, ctypes.byref(state))
        _check("cuLinkCreate", created)
        try:
            text = ptx.rstrip(b"\0") + b"\0"
            added = cuda.cuLinkAddData_v2(
                state, ctypes.c_int(_INPUT_PTX), text, ctypes.c_size_t(len(text)), b"program",
                ctypes.c_uint(0), None, None,
            )  # fmt: skip
            _check("cuLinkAddData", added)
            cubin, size = ctypes.c_void_p(), ctypes.c_size_t()
            done = cuda.cuLinkComplete(state, ctypes.byref(cubin), ctypes.byref(size))
            _check("cuLinkComplete", done)
            return ctypes.string_at(cubin, size.value)
        finally:
            cuda.cuLinkDestroy(state)

    def _open(self) -> ctypes.CDLL:
        with self._lock:
            if self._library is None:
                cuda = ctypes.CDLL(LIBRARY)
                _check("cuInit", cuda.cuInit(ctypes.c_uint(0)))
                # Linking needs some context; the code that comes out depends on the target only.
                retained = cuda.cuDevicePrimaryCtxRetain(
                    ctypes.byref(self._context), ctypes.c_int(0)
                )
                _check("cuDevicePrimaryCtxRetain", retained)
                self._library = cuda
            return self._library

    def close(self) -> None:
        """Give the CUDA context back; a later :meth:`link` opens one again."""
        with self._lock:
            if self._library is not None:
                self._library.cuDevicePrimaryCtxRelease_v2(ctypes.c_int(0))
                self._library = None


class _CudaError(Exception):
    """A call of the CUDA driver API that did not succeed."""


def _check(call: str, result: int) -> None:
    if result:
        raise _CudaError(f"{call} ended with {result}")
