"""OpenCL devices: finding them, describing them as plain data, and choosing one."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Literal

from ..errors import DeviceError, UsageError
from ..units import parse_bytes
from .faults import known_fault
from .features import FEATURE_EXTENSIONS, remaining
from .identity import driver_key
from .limits import NO_LIMITS, Limits
from .opencl import cl

logger = logging.getLogger(__name__)

DeviceType = Literal["cpu", "gpu", "accelerator"]
LocalMemoryType = Literal["local", "global", "none"]

#: The order in which devices are listed. Intel's FPGA emulator is an accelerator: last.
DEVICE_TYPES: tuple[DeviceType, ...] = ("gpu", "cpu", "accelerator")

#: Share of the global memory we allow ourselves. Where the host's own memory is meant, the
#: system, the page cache with the model file and the user's other programs need a share, too.
SHARE_OF_DEVICE_MEMORY = 0.9
SHARE_OF_HOST_MEMORY = 0.7

NO_DEVICE = (
    "no OpenCL device found: install a CPU driver with pip install 'clkiln[pocl]' or "
    "pip install 'clkiln[intel]', Debian's pocl-opencl-icd, or the driver of your GPU's vendor"
)


@dataclass(frozen=True)
class DeviceInfo:
    """What a device says of itself. Memory sizes are bytes, image sizes pixels.

    ``features`` are the names that a kernel's variants may require; those here come from the
    device's own description, and probing may add to them (:meth:`with_features`). ``limits`` are
    those with which it pretends to be a smaller one (:mod:`.pretend`).
    """

    index: int
    name: str
    type: DeviceType
    vendor: str
    platform: str
    platform_version: str
    device_version: str
    driver_version: str
    opencl_c_version: str
    compute_units: int
    global_memory: int
    max_alloc: int
    unified_memory: bool
    local_memory: int
    local_memory_type: LocalMemoryType
    max_work_group_size: int
    max_work_item_sizes: tuple[int, ...]
    images: bool
    image2d_max_width: int
    image2d_max_height: int
    image_max_buffer_size: int
    fp16: bool
    fp64: bool
    subgroups: bool
    command_buffers: bool
    float_vector_width: int
    extensions: tuple[str, ...]
    features: frozenset[str]
    limits: Limits = NO_LIMITS

    @cached_property
    def driver_key(self) -> str:
        """What a cached binary or timing must match: see :mod:`.identity`."""
        return driver_key(self, str(self.limits))

    @property
    def selector(self) -> str:
        """``PLATFORM:NAME``, which ``--device`` takes."""
        return f"{self.platform}:{self.name}"

    def with_features(self, *names: str) -> DeviceInfo:
        """The same device with features that were probed."""
        found = remaining(self.features.union(names), self.limits.without)
        return replace(self, features=found)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON and for the cache file, with the driver key and the selector."""
        data = asdict(self)
        data["max_work_item_sizes"] = list(self.max_work_item_sizes)
        data["extensions"] = list(self.extensions)
        data["features"] = sorted(self.features)
        data["limits"] = self.limits.as_list()
        return {**data, "driver_key": self.driver_key, "selector": self.selector}

    def __str__(self) -> str:
        # PoCL's version goes on about how it was built.
        version = re.split(r"\s\s|,", self.platform_version)[0]
        limited = f", limited: {', '.join(self.limits.sources)}" if self.limits else ""
        return f"{self.index}: {self.name} ({self.platform}, {version}{limited})"


@dataclass(frozen=True, eq=False)
class Device:
    """A device that is there: its description and pyopencl's handle."""

    info: DeviceInfo
    handle: cl.Device

    def __repr__(self) -> str:
        return f"Device({self.info})"


def list_devices() -> list[Device]:
    """Every usable device, GPUs first; ``info.index`` is the place in this list.

    The order depends on names and versions and not on the order in which drivers were loaded, so
    an index means the same device from one process to the next. A platform that fails and a
    device that is not available are left out, with a note in the log.
    """
    found: list[tuple[DeviceInfo, cl.Device]] = []
    seen: set[int] = set()
    for platform in _platforms():
        for handle in _platform_devices(platform):
            # A driver that is listed under two names hands out the same device twice.
            if handle.int_ptr in seen:
                continue
            seen.add(handle.int_ptr)
            try:
                info = _describe(platform, handle)
            except cl.Error as error:
                logger.warning("a device of %s does not answer, left out: %s", platform, error)
                continue
            if info is not None:
                found.append((info, handle))
    found.sort(key=lambda pair: _order(pair[0]))
    return [Device(replace(info, index=i), handle) for i, (info, handle) in enumerate(found)]


def _order(info: DeviceInfo) -> tuple[int, str, str, str]:
    return (DEVICE_TYPES.index(info.type), info.platform, info.platform_version, info.name)


def _platforms() -> list[cl.Platform]:
    try:
        return list(cl.get_platforms())
    except cl.Error as error:
        # The loader answers so when it has no driver at all (CL_PLATFORM_NOT_FOUND_KHR).
        logger.debug("no OpenCL platform: %s", error)
        return []


def _platform_devices(platform: cl.Platform) -> list[cl.Device]:
    try:
        return list(platform.get_devices(cl.device_type.ALL))
    except cl.Error as error:
        level = logging.DEBUG if error.code == cl.status_code.DEVICE_NOT_FOUND else logging.WARNING
        logger.log(level, "OpenCL platform %s has no device: %s", platform, error)
        return []


def _ask(handle: cl.Device, name: str) -> int:
    """A number that not every driver knows; 0 where it does not."""
    try:
        return int(getattr(handle, name))
    except (cl.Error, AttributeError):
        return 0


def _device_type(flags: int) -> DeviceType | None:
    """The type of a device; None for custom devices, which compile no OpenCL C."""
    if flags & cl.device_type.GPU:
        return "gpu"
    if flags & cl.device_type.CPU:
        return "cpu"
    return "accelerator" if flags & cl.device_type.ACCELERATOR else None


def _describe(platform: cl.Platform, handle: cl.Device) -> DeviceInfo | None:
    """Ask a device for everything; None where it cannot be used. Raises ``cl.Error``."""
    kind = _device_type(handle.type)
    if kind is None:
        return None
    if not handle.available or not handle.compiler_available:
        logger.warning("%s is not available or cannot compile, left out", handle.name.strip())
        return None
    extensions = tuple(sorted(set(handle.extensions.split())))
    features = {FEATURE_EXTENSIONS[e] for e in extensions if e in FEATURE_EXTENSIONS}
    images = bool(handle.image_support)
    texels = _ask(handle, "image_max_buffer_size") if images else 0
    if images:
        features.add("images")
    if texels:
        features.add("image_buffers")
    if _ask(handle, "max_num_sub_groups"):
        features.add("subgroups")
    if _numbers(handle.opencl_c_version) >= (1, 2):
        features.add("cl12")
    local_types: dict[int, LocalMemoryType] = {
        cl.device_local_mem_type.LOCAL: "local",
        cl.device_local_mem_type.GLOBAL: "global",
    }
    return DeviceInfo(
        index=-1,
        name=handle.name.strip(),
        type=kind,
        vendor=handle.vendor.strip(),
        platform=platform.name.strip(),
        platform_version=platform.version.strip(),
        device_version=handle.version.strip(),
        driver_version=handle.driver_version.strip(),
        opencl_c_version=handle.opencl_c_version.strip(),
        compute_units=handle.max_compute_units,
        global_memory=handle.global_mem_size,
        max_alloc=handle.max_mem_alloc_size,
        unified_memory=bool(_ask(handle, "host_unified_memory")),
        local_memory=handle.local_mem_size,
        local_memory_type=local_types.get(handle.local_mem_type, "none"),
        max_work_group_size=handle.max_work_group_size,
        max_work_item_sizes=tuple(handle.max_work_item_sizes),
        images=images,
        image2d_max_width=handle.image2d_max_width if images else 0,
        image2d_max_height=handle.image2d_max_height if images else 0,
        image_max_buffer_size=texels,
        fp16="fp16" in features,
        fp64="cl_khr_fp64" in extensions,
        subgroups="subgroups" in features,
        command_buffers="cl_khr_command_buffer" in extensions,
        float_vector_width=max(1, _ask(handle, "native_vector_width_float")),
        extensions=extensions,
        features=frozenset(features),
    )


def selector_from_environment() -> str | None:
    """``CLKILN_DEVICE``, or None where it is unset or empty."""
    return os.environ.get("CLKILN_DEVICE", "").strip() or None


def select_device(selector: str | None, devices: Sequence[Device] | None = None) -> Device:
    """The device that ``selector`` means, of ``devices`` or of all there are.

    - a number of one or two digits: the index in :func:`list_devices`
    - ``gpu``, ``cpu``, ``accelerator``: the best of that type, by the rule of
      :func:`default_device`
    - ``PLATFORM:NAME``: a part of each, either may be empty; the platform's version counts as
      the platform, too (``PoCL 3.1:``)
    - anything else: a part of the name, or a whole name, which goes before longer ones

    Letter case is ignored. None is the default device. Raises :class:`DeviceError` where no
    device, or more than one, is meant, listing the candidates with their indices.
    """
    devices = list_devices() if devices is None else devices
    if selector is None or not devices:
        return default_device(devices)[0]
    text = selector.strip().lower()
    if text in DEVICE_TYPES:
        of_type = [d for d in devices if d.info.type == text]
        if of_type:
            return default_device(of_type)[0]
    matches = _candidates(text, devices)
    if not matches:
        raise DeviceError(f"no device matches {selector!r}; there is {_listing(devices)}")
    if len(matches) > 1:
        raise DeviceError(
            f"{selector!r} means several devices, choose one by its index: {_listing(matches)}"
        )
    return matches[0]


def _candidates(text: str, devices: Sequence[Device]) -> list[Device]:
    """The devices that ``text`` (lower case) can mean, by the first reading that finds any."""
    if not text.strip(": "):
        return []
    if re.fullmatch(r"\d{1,2}", text):
        # An index and nothing else: 7 must not find the one device with a 7 in its name.
        return [d for d in devices if d.info.index == int(text)]
    readings: tuple[Callable[[DeviceInfo], bool], ...] = (
        lambda info: text in (info.name.lower(), info.selector.lower()),
        lambda info: text in info.name.lower(),
        lambda info: _is_platform_and_name(text, info),
    )
    for reading in readings:
        matches = [d for d in devices if reading(d.info)]
        if matches:
            return matches
    return []


def _is_platform_and_name(text: str, info: DeviceInfo) -> bool:
    """Whether ``text`` is ``PLATFORM:NAME`` with a part of each of ``info``'s."""
    platforms = (info.platform.lower(), info.platform_version.lower())
    # Names and platforms may hold colons themselves: each may be the one between the two parts.
    return any(
        text[colon.end() :].strip() in info.name.lower()
        and any(text[: colon.start()].strip() in platform for platform in platforms)
        for colon in re.finditer(":", text)
    )


def _listing(devices: Sequence[Device]) -> str:
    return "; ".join(str(d.info) for d in devices)


def default_device(
    devices: Sequence[Device], measured: Mapping[str, float] | None = None
) -> tuple[Device, str]:
    """The device to use when none was asked for, and why, as a phrase.

    ``measured`` maps driver keys to tokens per second of this model's decode: the quickest wins.
    Before any measurement it is the first GPU, else the best CPU device: the one with most
    compute units, then the widest native float vector, then the newest OpenCL C, then the newest
    driver. A device that is known to compile nothing (:mod:`.faults`) is taken only where there is
    no other. Raises :class:`DeviceError` where there is no device.
    """
    if not devices:
        raise DeviceError(NO_DEVICE)
    aside = [d for d in devices if known_fault(d.info)] if len(devices) > 1 else []
    sound = [d for d in devices if d not in aside]
    if not sound or not aside:
        return _by_rule(devices, measured or {})
    chosen, why = _by_rule(sound, measured or {})
    names = ", ".join(d.info.name for d in aside)
    return chosen, f"{why}; no kernel compiles on {names}"


def _by_rule(devices: Sequence[Device], rates: Mapping[str, float]) -> tuple[Device, str]:
    known = [d for d in devices if d.info.driver_key in rates]
    if known:
        quickest = max(known, key=lambda d: (rates[d.info.driver_key], _merit(d.info)))
        rate = rates[quickest.info.driver_key]
        return quickest, f"measured quickest for this model ({rate:.1f} tokens/s)"
    if len(devices) == 1:
        return devices[0], "the only device"
    gpus = [d for d in devices if d.info.type == "gpu"]
    if gpus:
        return gpus[0], "the first GPU, nothing measured yet"
    cpus = [d for d in devices if d.info.type == "cpu"]
    if cpus:
        best = max(cpus, key=lambda d: _merit(d.info))
        return best, "the best CPU device, no GPU, nothing measured yet"
    return devices[0], "the first device, neither GPU nor CPU"


def _merit(info: DeviceInfo) -> tuple[int, int, tuple[int, ...], tuple[int, ...], int]:
    """What makes one CPU device better than another before it is measured."""
    return (
        info.compute_units,
        info.float_vector_width,
        _numbers(info.opencl_c_version),
        _numbers(info.driver_version),
        -info.index,
    )


def _numbers(version: str) -> tuple[int, ...]:
    """``OpenCL C 3.1`` -> (3, 1)."""
    match = re.search(r"\d+(\.\d+)*", version)
    return tuple(map(int, match.group().split("."))) if match else ()


def memory_budget(info: DeviceInfo) -> int:
    """Bytes of device memory that clkiln allows itself.

    ``CLKILN_MEMORY_BUDGET`` (bytes, or with K, M, G or T for powers of 1024) or, unset, a share
    of the global memory: :data:`SHARE_OF_HOST_MEMORY` where it is the host's,
    :data:`SHARE_OF_DEVICE_MEMORY` otherwise. Raises :class:`UsageError` for a bad value.
    """
    text = os.environ.get("CLKILN_MEMORY_BUDGET", "").strip()
    if text:
        return parse_size(text, "CLKILN_MEMORY_BUDGET")
    shared = info.unified_memory or info.type == "cpu"
    return int(info.global_memory * (SHARE_OF_HOST_MEMORY if shared else SHARE_OF_DEVICE_MEMORY))


def parse_size(text: str, what: str) -> int:
    """``512M`` -> 536870912. Raises :class:`UsageError`, which names ``what`` was asked for."""
    size = parse_bytes(text)
    if size is None:
        raise UsageError(f"{what}: {text!r} is no size; write bytes, or for example 512M or 2G")
    return size
