"""A standard set of workloads, for ``tune`` without a model.

It comes from the models that people run (:mod:`.families`), through the same graph as a model's own
workloads, so that the two can't drift apart. All of them would be far more than a search can do in
the time it has; so they are chosen one by one, each time what brings the most of a typical
request's time nearer to something tuned, for the seconds that its trials cost. What is most used
comes first, and of shapes that are alike one stands for all.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from math import inf

import numpy as np

from ..kernels import SPECS
from ..kernels.near import FAR, distance
from ..kernels.types import DeviceLimits, Workload
from ..kernels.uses import Use, layout_groups
from ..kernels.weights import DTYPES
from .families import FAMILIES, MIXES, Family, Mix, Tensors
from .graph import Graph, uses
from .weights import Weights

#: Trials that make it worth taking a workload into the set: the default alone lends nothing.
TRIALS = 3
#: What a trial costs on the devices measured: compiling, and for large shapes random inputs, the
#: NumPy reference and the measurement.
_SECONDS, _BYTES_PER_S, _FLOPS_PER_S = 0.5, 50e6, 10e9
#: The distance of what has nothing in common, and of everything from nothing.
UNRELATED = 1.5 * FAR
#: Multiply-adds that a device does while it reads a byte: to weigh prefill against decode.
_FLOPS_PER_BYTE = 20.0


@dataclass
class Unit:
    """Workloads that are chosen together: those that read one weight, or a single one.

    ``shares`` are their parts of typical requests, summed over the models that have them.
    """

    uses: dict[Workload, Use] = field(default_factory=dict)
    shares: dict[Workload, float] = field(default_factory=dict)

    def add(self, use: Use, share: float) -> None:
        self.uses.setdefault(use.workload, use)
        self.shares[use.workload] = self.shares.get(use.workload, 0.0) + share

    @property
    def share(self) -> float:
        return sum(self.shares.values())

    @property
    def head(self) -> Workload:
        """The workload by which units are compared: what decode does with the weight."""
        return min(self.uses, key=lambda w: (w.op != "gemv", w.op, str(w)))

    @property
    def seconds(self) -> float:
        """What the trials of its workloads take."""
        return TRIALS * sum(map(trial_seconds, self.uses))

    def weighted(self, share: float) -> list[Use]:
        """The uses, with steps so that together they are ``share`` of the time."""
        return [
            replace(use, steps=share * part / self.share / (use.launches * _least(use.workload)))
            for use, part in zip(self.uses.values(), self.shares.values(), strict=True)
        ]


def standard_uses(
    limits: DeviceLimits,
    memory: int,
    kv: str,
    *,
    seconds: float | None = None,
    ops: Collection[str] = (),
) -> list[Use]:
    """The standard set for a device, most useful first.

    ``memory`` is how many bytes a model may take: larger ones are left out, and so is what does not
    run on a device with ``limits``. ``kv`` is the KV cache's dtype. ``seconds`` is the time there
    is for trials (None: all workloads are taken), ``ops`` limits the set to operations. A use's
    share of the time is what it stands for: its own and that of what is nearest to it.
    """
    units = [unit for unit in _units(limits, memory, kv, ops) if _runs(unit, limits)]
    chosen = _choose(units, seconds)
    shares = _stands_for(chosen, units)
    return [use for unit, share in zip(chosen, shares, strict=True) for use in unit.weighted(share)]


def standard_operations(kv: str) -> list[str]:
    """The operations that the standard set has workloads of."""
    plain = next(mix for mix in MIXES if mix.linear == mix.finer == mix.head == "f16")
    return sorted({use.workload.op for use in family_uses(FAMILIES[0], plain, kv, None)})


def trial_seconds(workload: Workload) -> float:
    """About what one trial costs."""
    spec = SPECS[workload.op]
    return _SECONDS + spec.bytes(workload) / _BYTES_PER_S + spec.flops(workload) / _FLOPS_PER_S


def _least(workload: Workload) -> float:
    """The least time of a launch on a device of no particular speed, in no particular unit."""
    spec = SPECS[workload.op]
    # One byte per microsecond is nothing: a launch costs, however small it is.
    return max(spec.bytes(workload), spec.flops(workload) / _FLOPS_PER_BYTE, 20_000.0)


def _units(limits: DeviceLimits, memory: int, kv: str, ops: Collection[str]) -> list[Unit]:
    """Everything that there is to choose from, shares summing to that of all families."""
    named: list[tuple[Use, str, float]] = []
    for family in FAMILIES:
        for mix in MIXES:
            found = family_uses(family, mix, kv, limits)
            if not found or _weight_bytes(found) > memory:
                continue
            whole = sum(use.cost(_least(use.workload)) for use in found)
            for use in found:
                if ops and use.workload.op not in ops:
                    continue
                group = f"{family.name} {mix.name} {use.group}" if use.group else str(use.workload)
                share = mix.share * use.cost(_least(use.workload)) / whole
                named.append((use, group, share))
    names = layout_groups((use.workload, group) for use, group, _ in named)
    units: dict[str, Unit] = {}
    for use, _, share in named:
        name = names[use.workload]
        own = replace(use, group=name if use.group else None)
        units.setdefault(name, Unit()).add(own, share)
    return list(units.values())


def family_uses(family: Family, mix: Mix, kv: str, limits: DeviceLimits | None) -> list[Use]:
    """What a model of ``family`` in ``mix`` launches on a device; nothing where a coding has no
    kernels."""
    config = family.config()
    tensors = Tensors(config, mix)
    if not tensors.codings() <= {*DTYPES}:
        return []
    return uses(Graph(config, Weights(tensors, config), kv, limits), config.context_length)


def _weight_bytes(found: Iterable[Use]) -> int:
    """Bytes of the matrices that a decoded token reads: nearly all of a model."""
    gemv = SPECS["gemv"]
    return sum(
        use.launches * gemv.bytes(use.workload) for use in found if use.workload.op == gemv.op
    )


def _runs(unit: Unit, limits: DeviceLimits) -> bool:
    """Whether the device can run the safe default of every workload of ``unit``."""
    return all(
        (spec := SPECS[workload.op]).check(workload, spec.safe(workload, limits), limits) is None
        for workload in unit.uses
    )


class _Gaps:
    """How far units of one operation lie apart: ``[unit, unit]``, at most :data:`FAR` and a bit.

    ``left`` is how far each unit is from the nearest chosen one.
    """

    def __init__(self, units: Sequence[Unit]) -> None:
        self.units = units
        heads = [unit.head for unit in units]
        self.gaps = np.zeros((len(units), len(units)))
        for i, one in enumerate(heads):
            for j in range(i):
                gap = min(distance(one, heads[j]), UNRELATED)
                self.gaps[i, j] = self.gaps[j, i] = gap
        self.left = np.full(len(units), UNRELATED)
        self.shares = np.array([unit.share for unit in units])
        self.seconds = np.array([unit.seconds for unit in units])

    def best(self, seconds: float) -> tuple[float, int]:
        """Gain for a second of the unit that is worth most and not dearer than ``seconds``."""
        nearer = np.maximum(self.left[:, None] - self.gaps, 0.0)
        worth = self.shares @ nearer / self.seconds
        worth[self.seconds > seconds] = 0.0
        place = int(np.argmax(worth))
        return float(worth[place]), place

    def take(self, place: int) -> Unit:
        self.left = np.minimum(self.left, self.gaps[place])
        return self.units[place]


def _choose(units: Iterable[Unit], seconds: float | None) -> list[Unit]:
    """Units in the order of what they are worth, until the time is spent or all are taken.

    One is taken however short the time is.
    """
    of_op: dict[str, list[Unit]] = {}
    for unit in units:
        of_op.setdefault(unit.head.op, []).append(unit)
    pools = [_Gaps(of_op[op]) for op in sorted(of_op)]
    left, chosen = inf if seconds is None else seconds, list[Unit]()
    bests = [pool.best(inf) for pool in pools]
    while pools and max(bests)[0] > 0:
        index = max(range(len(pools)), key=lambda i: bests[i][0])
        unit = pools[index].take(bests[index][1])
        chosen.append(unit)
        left -= unit.seconds
        for i, pool in enumerate(pools):
            if i == index or pool.seconds[bests[i][1]] > left:
                bests[i] = pool.best(left)
    return chosen


def _stands_for(chosen: Sequence[Unit], units: Iterable[Unit]) -> list[float]:
    """The share of each chosen unit, with those of all units that it is nearest to."""
    shares = [0.0] * len(chosen)
    for unit in units:
        gaps = [min(distance(unit.head, other.head), UNRELATED) for other in chosen]
        if gaps and min(gaps) < UNRELATED:
            shares[gaps.index(min(gaps))] += unit.share
    return shares
