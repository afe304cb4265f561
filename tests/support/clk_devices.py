"""Devices that are not there: descriptions to hold rules and selectors against."""

from __future__ import annotations

from typing import Any, cast

from clkiln.runtime.device import Device, DeviceInfo

_TYPICAL: dict[str, Any] = {
    "index": 0,
    "name": "Acme 1000",
    "type": "gpu",
    "vendor": "Acme",
    "platform": "Acme OpenCL",
    "platform_version": "OpenCL 3.0 Acme 7.1",
    "device_version": "OpenCL 3.0 acme-1000",
    "driver_version": "7.1.3",
    "opencl_c_version": "OpenCL C 1.2",
    "compute_units": 16,
    "global_memory": 8 << 30,
    "max_alloc": 2 << 30,
    "unified_memory": False,
    "local_memory": 48 << 10,
    "local_memory_type": "local",
    "max_work_group_size": 1024,
    "max_work_item_sizes": (1024, 1024, 64),
    "images": True,
    "image2d_max_width": 16384,
    "image2d_max_height": 16384,
    "image_max_buffer_size": 1 << 27,
    "fp16": True,
    "fp64": False,
    "subgroups": False,
    "command_buffers": False,
    "float_vector_width": 1,
    "extensions": ("cl_khr_fp16",),
    "features": frozenset({"images", "image_buffers", "fp16"}),
}


def make_info(**changes: Any) -> DeviceInfo:
    """A typical GPU's description, with ``changes``."""
    return DeviceInfo(**{**_TYPICAL, **changes})


def make_device(**changes: Any) -> Device:
    """A device without a handle: whatever touches OpenCL through it fails."""
    return Device(make_info(**changes), cast(Any, None))


def numbered(*changes: dict[str, Any]) -> list[Device]:
    """Devices with their places as indices."""
    return [make_device(**{**change, "index": i}) for i, change in enumerate(changes)]
