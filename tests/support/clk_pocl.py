"""The CPU devices that the tests run on: PoCL from pip everywhere, Debian's where it is there."""

from __future__ import annotations

import pytest

from clkiln.runtime.device import Device, list_devices


def pocl_devices() -> list[Device]:
    """Every PoCL device, pip's first."""
    found = [d for d in list_devices() if "PoCL" in d.info.platform_version]
    return sorted(found, key=_is_debians)


def find_pocl(source: str) -> Device:
    """The PoCL device from ``pip`` or ``debian``; skips the test where it is not there."""
    for device in pocl_devices():
        if _is_debians(device) == (source == "debian"):
            return device
    pytest.skip(f"no PoCL from {source} here")


def _is_debians(device: Device) -> bool:
    return "debian" in device.info.platform_version
