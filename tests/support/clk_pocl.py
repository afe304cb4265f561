"""The CPU devices that the tests run on: PoCL from pip and Debian's, of those that compile here.

PoCL from pip compiles nothing on processors that are newer than it. Tests that need any device take
another one there, and tests of each PoCL are skipped for it, unless no PoCL works at all.
"""

from __future__ import annotations

from functools import cache

import pytest

from clkiln.runtime.device import Device, list_devices
from clkiln.runtime.faults import try_device


@cache
def working() -> tuple[Device, ...]:
    """Every CPU device that compiles: PoCL from pip first, then other PoCLs, then what else."""
    cpus = sorted((d for d in list_devices() if d.info.type == "cpu"), key=_place)
    return tuple(device for device in cpus if not try_device(device))


def a_device() -> Device:
    """The device of tests that need any."""
    if not working():
        pytest.fail("no CPU device compiles here: see clkiln devices --try")
    return working()[0]


def find_pocl(source: str) -> Device:
    """The PoCL device from ``pip`` or ``debian``; skips the test where it does not work.

    Where no PoCL works another device stands in for pip's.
    """
    place = ("pip", "debian").index(source)
    for device in working():
        if _place(device)[0] == place:
            return device
    if source == "pip" and _place(a_device())[0] > 1:
        return a_device()
    pytest.skip(f"no PoCL from {source} that compiles here")


def find_intel() -> Device:
    """Intel's runtime for CPUs; skips the test where it is not there."""
    for device in working():
        if "Intel" in device.info.platform:
            return device
    pytest.skip("no OpenCL from Intel here")


def _place(device: Device) -> tuple[int, int]:
    version, index = device.info.platform_version, device.info.index
    if "PoCL" in version:
        return ("debian" in version, index)
    return (2, index)
