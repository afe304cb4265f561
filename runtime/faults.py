"""Devices that are listed and compile nothing: known without trying, or found by trying one.

An old driver on a new processor is such a device. What was found by trying is kept beside the
``.icd`` files that clkiln writes, so that a start can choose another device and compile nothing for
it; a driver that works leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import logging
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import trust
from ..errors import CacheError, DeviceError
from .icd import driver_folder
from .identity import split_key
from .opencl import cl

if TYPE_CHECKING:
    from .device import Device, DeviceInfo

logger = logging.getLogger(__name__)

#: What to do about a device that compiles nothing.
OTHER_DRIVER = (
    "install another driver: pip install 'clkiln[intel]' (x86-64, AMD too) or Debian's "
    "pocl-opencl-icd for the CPU, or the newest one of a GPU's vendor"
)

_ITEMS, _GROUP = 64, 8
_KERNEL = f"""
__attribute__((reqd_work_group_size({_GROUP}, 1, 1)))
kernel void small(global uint *out) {{ out[get_global_id(0)] = 3 * get_global_id(0) + 1; }}
"""


def known_fault(info: DeviceInfo) -> str:
    """Why a device compiles nothing, as far as that is known without compiling; else empty."""
    return _stated(info) or _kept(info.driver_key)


def _stated(info: DeviceInfo) -> str:
    """What follows from the driver's own words.

    PoCL's version ends with the target that it compiles for. Where its LLVM is older than the
    processor that is ``generic``, a name that clang knows on other architectures only.
    """
    if re.search(r"\bPoCL\b.*x86_64-\S*-generic$", info.device_version):
        return "its LLVM is older than this processor (unknown target CPU 'generic')"
    return ""


def try_device(device: Device) -> str:
    """Compile a small kernel, run it and look at what it wrote; why that failed, or empty.

    It takes up to a second where the driver's own cache is empty. A compiler's verdict is kept for
    :func:`known_fault`; a device that was lost or is out of memory may be back next time.
    """
    stated, kept = _stated(device.info), ""
    try:
        found = kept = _run(device.handle)
    except cl.Error as error:
        found = _first_words(str(error))
        if error.code == cl.status_code.BUILD_PROGRAM_FAILURE:
            kept = found
    _keep(device.info.driver_key, "" if stated else kept)
    return stated if found and stated else found


def check_device(device: Device) -> None:
    """Raise :class:`~clkiln.errors.DeviceError` where not even a small kernel works, still.

    Only one with a known fault is tried: its driver may have been mended.
    """
    if known_fault(device.info) and (fault := try_device(device)):
        raise DeviceError(message(device.info, fault))


def message(info: DeviceInfo, fault: str) -> str:
    """The error of a device with this fault: what, which driver and processor, what to do."""
    version = re.split(r"\s\s|,", info.platform_version)[0]
    return (
        f"not even a small kernel works on {info.name} ({info.platform}, {version}): {fault}; "
        f"choose another device (clkiln devices), or {OTHER_DRIVER}"
    )


def _run(handle: cl.Device) -> str:
    context = cl.Context([handle])
    queue = cl.CommandQueue(context)
    no_cache: Any = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of chatter about a build that worked
        program = cl.Program(context, _KERNEL).build(cache_dir=no_cache)
    kernel, got = cl.Kernel(program, "small"), np.zeros(_ITEMS, np.uint32)
    buffer = cl.Buffer(context, cl.mem_flags.READ_WRITE, got.nbytes)
    kernel.set_args(buffer)
    cl.enqueue_nd_range_kernel(queue, kernel, (_ITEMS,), (_GROUP,))
    cl.enqueue_copy(queue, got, buffer)
    want = 3 * np.arange(_ITEMS, dtype=np.uint32) + 1
    return "" if np.array_equal(got, want) else "a small kernel gave a wrong result"


def _first_words(text: str) -> str:
    """The first line of a compiler's log that speaks of an error, else the first line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    spoken = [line for line in lines if re.match(r"(\S+:\s+)?(fatal )?error\b", line)]
    return (spoken or lines or ["no reason given"])[0][:300]


def _kept(driver_key: str) -> str:
    try:
        text = _file(driver_key).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError, CacheError):
        return ""
    return " ".join(text.split())


def _keep(driver_key: str, fault: str) -> None:
    # A folder that cannot be used costs another try, and nothing else.
    with contextlib.suppress(OSError, CacheError):
        file = _file(driver_key)
        if fault:
            trust.make_folders(file.parent)
            file.touch(mode=0o600)  # whatever the umask
            file.write_text(f"{fault}\n", encoding="utf-8")
        else:
            file.unlink(missing_ok=True)


def _file(driver_key: str) -> Path:
    """Under limits a driver has the same faults.

    Raises :class:`CacheError` where others could write it: they would choose the device, or put a
    link in its place.
    """
    file = driver_folder() / f"{split_key(driver_key)[0]}.fault"
    trust.check(file)
    return file
