"""What a device must share with another for results to carry over: the driver key."""

from __future__ import annotations

import hashlib
import json
from typing import Protocol

#: Everything that decides whether a binary loads and a time still holds. PoCL's platform version
#: names its LLVM and its device version the processor it compiles for. Serial numbers and bus
#: addresses are left out: two boards of one kind share their results, and so do rented machines.
IDENTITY_FIELDS = (
    "platform",
    "platform_version",
    "name",
    "device_version",
    "driver_version",
    "opencl_c_version",
    "compute_units",
)


class DeviceIdentity(Protocol):
    """The fields of a device that its driver key is made of."""

    @property
    def platform(self) -> str: ...
    @property
    def platform_version(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def device_version(self) -> str: ...
    @property
    def driver_version(self) -> str: ...
    @property
    def opencl_c_version(self) -> str: ...
    @property
    def compute_units(self) -> int: ...


#: What stands between a device's own key and the limits under which it was used.
_LIMITED = "+"


def driver_key(info: DeviceIdentity, limits: str = "") -> str:
    """Digest of :data:`IDENTITY_FIELDS`: 32 hexadecimal digits, the same on every machine.

    A device that pretends to be a smaller one has a key of its own, with the ``limits`` behind it:
    what is best for it is not for the whole device, and its programs are built from other text.
    """
    fields = {name: getattr(info, name) for name in IDENTITY_FIELDS}
    text = json.dumps(fields, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:32] + (limits and _LIMITED + limits)


def split_key(key: str) -> tuple[str, str]:
    """The key of the device itself, and the text of the limits behind it; empty for none."""
    own, _, limits = key.partition(_LIMITED)
    return own, limits
