"""The roofline model: the least time that a device's measured ceilings allow a workload.

Williams, Waterman, Patterson, "Roofline: an insightful visual performance model", CACM 2009.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..kernels.spec import KernelSpec
from ..kernels.types import Workload
from .model import Bound, Roof, RoofShare

#: What reading a foreign text can raise. A text that another version of clkiln wrote, or nobody's,
#: may lack a size or hold a word in its place.
MALFORMED = (LookupError, TypeError, ValueError, ArithmeticError)
#: More than any launch does: such sizes are from no real tuning run, and no float may hold them.
_TOO_MUCH = 2**62


@dataclass(frozen=True)
class Cost:
    """What one launch of a workload does at least: operations, and bytes moved."""

    flops: int
    bytes: int


def cost(workload: str, specs: Mapping[str, KernelSpec]) -> Cost | None:
    """The cost of a workload's text; None for one that this version does not understand."""
    try:
        parsed = Workload.parse(workload)
        spec = specs[parsed.op]
        found = Cost(int(spec.flops(parsed)), int(spec.bytes(parsed)))
    except MALFORMED:
        return None
    return found if 0 <= found.flops < _TOO_MUCH and 0 <= found.bytes < _TOO_MUCH else None


def least_time(cost: Cost, roof: Roof) -> tuple[Bound, float] | None:
    """The ceiling that binds and the seconds that it asks for: max(bytes/bandwidth, flops/peak).

    None if a ceiling that the workload needs was not measured: without it nobody knows which binds.
    """
    times: dict[Bound, float] = {}
    needs: tuple[tuple[Bound, int, float | None], ...] = (
        ("memory", cost.bytes, roof.bytes_per_s),
        ("arithmetic", cost.flops, roof.flops_per_s),
    )
    for bound, amount, per_s in needs:
        if amount <= 0:
            continue
        if per_s is None:
            return None
        times[bound] = amount / per_s
    if not times:
        return None
    bound = max(times, key=lambda name: times[name])
    return bound, times[bound]


def share(
    cost: Cost | None, roof: Roof, time: float | None, default_time: float | None
) -> RoofShare | None:
    """How close the measured times come to the roof; None where there is none to compare with."""
    least = least_time(cost, roof) if cost else None
    if least is None:
        return None
    bound, seconds = least
    return RoofShare(
        bound=bound,
        seconds=seconds,
        share=seconds / time if time else None,
        default_share=seconds / default_time if default_time else None,
    )
