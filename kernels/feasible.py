"""What keeps a configuration from running on a device: each check, and by how much it fails."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, prod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .spec import KernelSpec
    from .types import Argument, Config, DeviceLimits, Workload

#: Texels of an image buffer whose elements kernels can count in an int.
MOST_TEXELS = 1 << 29


@dataclass(frozen=True)
class Infeasible:
    """Why a configuration cannot run: the constraint, in words with both numbers.

    ``excess`` is what it needs over what the device has, infinite for what the device has nothing
    of; 0 for a constraint of the operation's own, which is no limit of the device.
    """

    reason: str
    excess: float = 0.0


def _features(
    spec: KernelSpec, workload: Workload, config: Config, limits: DeviceLimits
) -> Infeasible | None:
    missing = spec.variant(config.variant).requires - limits.features
    return Infeasible(f"needs {', '.join(sorted(missing))}", inf) if missing else None


def _constraint(
    spec: KernelSpec, workload: Workload, config: Config, limits: DeviceLimits
) -> Infeasible | None:
    broken = spec.constraint(workload, config, limits)
    return Infeasible(broken) if broken else None


def _local_memory(
    spec: KernelSpec, workload: Workload, config: Config, limits: DeviceLimits
) -> Infeasible | None:
    local, most = spec.local_memory(workload, config), limits.local_memory
    return _over(local, most, f"local memory {local} > {most} bytes") if local > most else None


def _work_group(
    spec: KernelSpec, workload: Workload, config: Config, limits: DeviceLimits
) -> Infeasible | None:
    local_size = spec.geometry(workload, config).local_size
    items, most = prod(local_size), limits.max_work_group_size
    if items > most:
        return _over(items, most, f"work-group {items} > {most} work-items")
    for size, most in zip(local_size, limits.max_work_item_sizes, strict=False):
        if size > most:
            return _over(size, most, f"local size {local_size} > {limits.max_work_item_sizes}")
    return None


def _arguments(
    spec: KernelSpec, workload: Workload, config: Config, limits: DeviceLimits
) -> Infeasible | None:
    broken = (argument_limit(each, limits) for each in spec.arguments(workload, config))
    return next((found for found in broken if found), None)


#: Every check of a configuration, in turn: what it breaks, or None. None of them keeps anything for
#: the next: what it says depends on the parameters that it reads of the configuration itself.
CHECKS = (_features, _constraint, _local_memory, _work_group, _arguments)


def argument_limit(argument: Argument, limits: DeviceLimits) -> Infeasible | None:
    """Which limit of a device the memory of ``argument`` exceeds; None if none."""
    nbytes, most = argument.nbytes, limits.max_alloc
    if nbytes > most:
        return _over(nbytes, most, f"{argument.name} {nbytes} > {most} bytes (largest allocation)")
    if argument.memory == "image1d":
        texels, most = argument.texels, min(limits.image_max_buffer_size, MOST_TEXELS)
        if texels > most:
            return _over(texels, most, f"{argument.name} image buffer {texels} > {most} texels")
    if argument.memory == "image2d":
        sides, largest = (
            argument.shape[1::-1],
            (limits.image2d_max_width, limits.image2d_max_height),
        )
        for side, most in zip(sides, largest, strict=True):
            if side > most:
                what = f"{sides[0]} x {sides[1]} > {largest[0]} x {largest[1]}"
                return _over(side, most, f"{argument.name} image {what}")
    return None


def _over(needed: int, most: int, reason: str) -> Infeasible:
    return Infeasible(reason, needed / most if most > 0 else inf)
