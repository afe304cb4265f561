"""``clkiln devices``: what OpenCL devices there are."""

from __future__ import annotations

from typing import Any

import click

from ..errors import DeviceError
from .common import echo, print_json, shared, wrapped

FIELDS = (
    "index", "name", "type", "vendor", "platform", "platform_version", "driver_version",
    "opencl_c_version",
    "compute_units", "global_memory", "max_alloc", "unified_memory", "local_memory",
    "local_memory_type", "max_work_group_size", "max_work_item_sizes", "images",
    "image2d_max_width", "image2d_max_height", "image_max_buffer_size", "fp16", "subgroups",
    "command_buffers", "limits", "selector", "driver_key",
)  # fmt: skip


@click.command("devices")
@click.option(
    "--try", "trying", is_flag=True,
    help="Compile and run a small kernel on each; ends with 1 if that works on none.",
)  # fmt: skip
@shared("device", "cache", "limits", "json")
def command(
    trying: bool, device: str | None, cache: Any, limits: tuple[str, ...], as_json: bool
) -> None:
    """List the OpenCL devices that clkiln can use."""
    from ..cache.paths import cache_file
    from ..runtime.device import NO_DEVICE, select_device
    from ..runtime.faults import OTHER_DRIVER, known_fault, try_device
    from ..runtime.pretend import asked_limits, limited_devices

    devices = limited_devices(asked_limits(limits))
    if device is not None:
        devices = [select_device(device, devices)]
    rows = []
    for found in devices:
        fields = found.info.as_dict()
        path = cache or cache_file(found.info.name, found.info.platform)
        fault = try_device(found) if trying else known_fault(found.info)
        row = {
            **{name: fields[name] for name in FIELDS}, "cache_file": str(path), "fault": fault,
        }  # fmt: skip
        rows.append((row, ", ".join(map(str, found.info.limits.entries))))
    if as_json:
        print_json([row for row, _ in rows])
    elif not rows:
        raise DeviceError(NO_DEVICE)
    else:
        for row, limited in rows:
            _show(row, limited)
    if trying and all(row["fault"] for row, _ in rows):
        raise DeviceError(f"none of these devices compiles a small kernel: {OTHER_DRIVER}")


def _show(row: dict[str, Any], limited: str) -> None:
    from ..units import readable

    echo(f"{row['index']}: {row['name']}")
    extras = [name for name in ("images", "fp16", "subgroups", "command_buffers") if row[name]]
    version = row["platform_version"].split(",")[0]
    lines = {
        "type": f"{row['type']}, {row['compute_units']} compute units",
        "platform": f"{row['platform']}, {version}",
        "driver": f"{row['driver_version']} ({row['opencl_c_version']})",
        "memory": f"{readable(row['global_memory'])}, "
        f"{readable(row['max_alloc'])} at once, {readable(row['local_memory'])} local",
        "features": ", ".join(extras) or "none",
        "cache file": row["cache_file"],
    }
    for name, value in lines.items():
        echo(f"   {name:<11}{value}")
    if limited:
        wrapped(f"   {'limited':<11}", limited)
    if row["fault"]:
        wrapped("   problem    ", f"not even a small kernel works: {row['fault']}")
