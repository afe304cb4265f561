"""A device that pretends to be a smaller one: limits applied to its description.

Whatever asks a :class:`~.device.DeviceInfo` then sees the smaller figures, and builds
(:mod:`.restrict`), allocations (:mod:`.memory`) and launches (:mod:`.launch`) that break one end
with the error that the smaller device would give, naming the profile.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from ..errors import UsageError
from . import device as there
from .device import Device, DeviceInfo
from .features import FEATURE_EXTENSIONS, lost, remaining
from .identity import split_key
from .limits import Limit, Limits, limits_from_environment, read_limits, smaller

Names = Iterable[str | os.PathLike[str]]

#: What a device says of a feature beside its name, and what it says without it.
_SAYS: dict[str, dict[str, Any]] = {
    "images": {"images": False, "image2d_max_width": 0, "image2d_max_height": 0},
    "image_buffers": {"image_max_buffer_size": 0},
    "fp16": {"fp16": False},
    "subgroups": {"subgroups": False},
}


def asked_limits(names: Names = ()) -> Limits:
    """The limits of ``names`` or, where there are none, of ``CLKILN_LIMITS``.

    Raises :class:`~clkiln.errors.UsageError` as :func:`~.limits.read_limits`, which names the
    variable if that is where they come from.
    """
    asked = tuple(names)
    if asked:
        return read_limits(asked)
    try:
        return read_limits(limits_from_environment())
    except UsageError as error:
        raise UsageError(f"CLKILN_LIMITS: {error}") from error


def limited(device: Device, limits: Limits) -> Device:
    """The same device under ``limits``."""
    return Device(limited_info(device.info, limits), device.handle) if limits else device


def limited_devices(limits: Limits) -> list[Device]:
    """Every device as :func:`~.device.list_devices` has it, under ``limits``."""
    return [limited(device, limits) for device in there.list_devices()]


def limited_info(info: DeviceInfo, limits: Limits) -> DeviceInfo:
    """The description under ``limits`` beside those that it may have already.

    A limit above the device's own figure changes nothing and is left out; a missing feature is kept
    even where the device has none such, for a source that uses it all the same must not build.
    """
    asked = info.limits.also(limits)
    gone = lost(asked.without)
    changes = {name: value for f in gone for name, value in _SAYS.get(f, {}).items()}
    entries: list[Limit] = []
    for entry in asked.entries:
        if entry.most is None:
            entries.append(entry)
            continue
        if entry.name in changes:
            continue  # the size of what is not there
        own = getattr(info, entry.name)
        most = smaller(own, entry.most)
        changes[entry.name] = most
        if most != own or entry.own is not None:
            entries.append(replace(entry, most=most, own=own if entry.own is None else entry.own))
    kept = tuple(e for e in info.extensions if FEATURE_EXTENSIONS.get(e) not in gone)
    changes |= {"extensions": kept, "features": remaining(info.features, asked.without)}
    return replace(info, **changes, limits=Limits(tuple(entries)))


def find_device(key: str, devices: Sequence[Device] | None = None) -> Device | None:
    """The device with this driver key, under the limits that the key names; None without one.

    Raises :class:`~clkiln.errors.UsageError` for a key with limits that there are not.
    """
    own, text = split_key(key)
    for device in there.list_devices() if devices is None else devices:
        if device.info.driver_key == own:
            return limited(device, Limits.parse(text))
    return None
