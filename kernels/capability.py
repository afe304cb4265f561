"""What a device can run: operation x variant x dtype, from the specs and the device's limits alone.

A workload can run if one configuration of its space is feasible. The safe one mostly is; where it
is not, the space is searched (:mod:`.space`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Literal

import numpy as np

from . import SPECS
from .feasible import Infeasible
from .near import VARYING, distance
from .rules import Rules
from .space import Space, nearer
from .spec import KernelSpec
from .types import Config, DeviceLimits, Variant, Workload
from .variants import VariantRequest

#: Tag of a cell whose operation takes tensors of one dtype only.
ANY = ""


@dataclass(frozen=True)
class Needs:
    """What a configuration asks of a device: bytes of local memory, work-items to a group, bytes
    of its largest argument, width and height of its largest image and texels of its largest image
    buffer (0 where it has none)."""

    local_memory: int
    work_group: int
    largest: int
    image: tuple[int, int]
    texels: int


@dataclass(frozen=True)
class Alternative:
    """Something near a workload that the device can run, and what is different about it.

    ``change`` is what a person would say: ``variant buffer``, ``pieces of 4096 rows``, ``kv=f16``,
    ``ctx=2048``.
    """

    workload: Workload
    config: Config
    kind: Literal["variant", "pieces", "dtype", "size"]
    change: str


@dataclass(frozen=True)
class Cell:
    """One operation in one variant and dtype; ``tag`` says what has the dtype (weights: ``w``).

    ``config`` can run; where none can, ``reason`` is what the configuration that is nearest to
    running breaks, with both figures, and ``nearest`` what can run instead.
    """

    workload: Workload
    variant: Variant
    tag: str
    dtype: str
    config: Config | None
    reason: str
    nearest: Alternative | None


class Capabilities:
    """What a device with ``limits`` can run, and may under ``rules``. Answers are kept."""

    def __init__(self, limits: DeviceLimits, rules: Rules | None = None) -> None:
        self.limits, self.rules = limits, rules or Rules()
        self._found: dict[tuple[Workload, str, str | None], Config | Infeasible] = {}

    def find(
        self, workload: Workload, kind: str | None = None, layout: str | None = None
    ) -> Config | Infeasible:
        """A configuration that can run, of one kind of variant and in one layout where they are
        given; else what the one that is nearest to running breaks, of those that may."""
        kinds = {variant.kind for variant in SPECS[workload.op].variants}
        if kind is not None and kind not in kinds:
            return Infeasible(f"it has no {kind} variant")
        broken: Infeasible | None = None
        for variant in self.rules.left(workload.op):
            if kind in (None, variant.kind):
                found = self.find_variant(workload, variant, layout)
                if isinstance(found, Config):
                    return found
                broken = nearer(broken, found)
        return broken or Infeasible(self.rules.why(workload))

    def find_variant(
        self, workload: Workload, variant: Variant, layout: str | None = None
    ) -> Config | Infeasible:
        """As :meth:`find`, of one variant."""
        key = (workload, variant.name, layout)
        if key not in self._found:
            self._found[key] = self._find(workload, variant, layout)
        return self._found[key]

    def _find(
        self, workload: Workload, variant: Variant, layout: str | None
    ) -> Config | Infeasible:
        if variant not in self.rules.left(workload.op):
            return Infeasible(self.rules.why(workload))
        found = _find(workload, variant, self.limits, layout)
        if not isinstance(found, Config) or self.rules.allows(workload, found, self.limits):
            return found
        left = self.rules.safe(
            workload, self.limits, layout=layout, also=lambda each: each.variant == variant.name
        )
        why = self.rules.why(workload) or "bans leave nothing of the conversions that it needs"
        return left or Infeasible(why)

    def kind(
        self, request: VariantRequest, workload: Workload, layout: str | None = None
    ) -> str | None:
        """The kind of variant that ``workload`` takes under ``request``; None if it is free.

        A kind that was asked of all operations is kept where it can run; asked of one operation by
        name it has to run. A ``layout`` is where the weight lies already: it goes before both.
        """
        kind = request.kind(workload.op)
        if kind is None or (layout is None and workload.op in request.by_op):
            return kind
        found = self.find(workload, kind, layout)
        return kind if isinstance(found, Config) else None

    def alternatives(self, workload: Workload, kind: str | None = None) -> Iterator[Alternative]:
        """What can run in place of ``workload`` (as ``kind``), nearest first: other variants of
        it, then pieces of it, then other dtypes and less of the sizes that vary at run time."""
        for variant in SPECS[workload.op].variants:
            found = self.find_variant(workload, variant)
            if kind != variant.kind and isinstance(found, Config):
                yield Alternative(workload, found, "variant", f"variant {variant.name}")
        yield from self._pieces(workload)
        others = [*self._other_dtypes(workload), *self._smaller(workload)]
        yield from sorted(others, key=lambda other: distance(workload, other.workload))

    def nearest(self, workload: Workload, kind: str | None = None) -> Alternative | None:
        """The first of :meth:`alternatives`."""
        return next(self.alternatives(workload, kind), None)

    def _pieces(self, workload: Workload) -> Iterator[Alternative]:
        """An engine cuts a matrix so by itself."""
        piece = SPECS[workload.op].piece(workload, self.limits)
        found = None if piece is None else self.find(piece)
        if piece is not None and isinstance(found, Config):
            yield Alternative(piece, found, "pieces", f"pieces of {piece.size('n')} rows")

    def _other_dtypes(self, workload: Workload) -> Iterator[Alternative]:
        """The same sizes in other dtypes: a model has its sizes."""
        for tag, dtype in dtypes_of(SPECS[workload.op], workload):
            other = workload.replace(**{tag: dtype}) if tag else workload
            if other == workload or other != in_dtype(workload, tag, dtype):
                continue
            found = self.find(other)
            if isinstance(found, Config):
                yield Alternative(other, found, "dtype", f"{tag}={dtype}")

    def _smaller(self, workload: Workload) -> Iterator[Alternative]:
        """The largest of each size that varies at run time that can run.

        None where configurations were wrong: no other size makes the kernel right.
        """
        if self.rules.wrong(workload):
            return
        sizes = dict(workload.items)
        for name in VARYING:
            high = sizes.get(name)
            if not isinstance(high, int) or not isinstance(self.find(workload), Infeasible):
                continue
            low, found = 1, self.find(workload.replace(**{name: 1}))
            while high - low > 1 and isinstance(found, Config):
                middle = (low + high) // 2
                answer = self.find(workload.replace(**{name: middle}))
                if isinstance(answer, Config):
                    low, found = middle, answer
                else:
                    high = middle
            if isinstance(found, Config):
                other = workload.replace(**{name: low})
                yield Alternative(other, found, "size", f"{name}={low}")

    def table(self, workloads: Iterable[Workload] | None = None) -> list[Cell]:
        """A cell for every variant and dtype of ``workloads``, by default the specs' examples.

        In a dtype whose blocks don't divide a workload's columns it is one of a few more columns.
        """
        if workloads is None:
            workloads = [Workload.parse(spec.example) for spec in SPECS.values()]
        return [
            self._cell(workload, variant, tag, dtype)
            for workload in workloads
            for variant in SPECS[workload.op].variants
            for tag, dtype in dtypes_of(SPECS[workload.op], workload)
        ]

    def _cell(self, example: Workload, variant: Variant, tag: str, dtype: str) -> Cell:
        workload = in_dtype(example, tag, dtype)
        found = self.find_variant(workload, variant)
        if isinstance(found, Config):
            return Cell(workload, variant, tag, dtype, found, "", None)
        nearest = self.nearest(workload)
        return Cell(workload, variant, tag, dtype, None, found.reason, nearest)


def dtypes_of(spec: KernelSpec, workload: Workload) -> list[tuple[str, str]]:
    """The dtypes that ``workload`` may have, as tag and dtype.

    An operation that declares none has the dtype of its largest tensor, under no tag.
    """
    tags = dict(workload.items).keys() & spec.dtypes.keys()
    found = [(tag, dtype) for tag in sorted(tags) for dtype in spec.dtypes[tag]]
    if found:
        return found
    config = next(spec.space(workload))
    largest = max(spec.arguments(workload, config), key=lambda argument: argument.nbytes)
    dtype = np.dtype(largest.dtype)
    return [(ANY, f"{dtype.kind}{8 * dtype.itemsize}")]


def in_dtype(workload: Workload, tag: str, dtype: str) -> Workload:
    """``workload`` in one of :func:`dtypes_of`."""
    return SPECS[workload.op].in_dtype(workload, tag, dtype) if tag else workload


def needs(workload: Workload, config: Config) -> Needs:
    """What ``config`` asks of a device."""
    spec = SPECS[workload.op]
    arguments = spec.arguments(workload, config)
    images = [a.shape for a in arguments if a.memory == "image2d"]
    return Needs(
        spec.local_memory(workload, config),
        prod(spec.geometry(workload, config).local_size),
        max(argument.nbytes for argument in arguments),
        (max((s[1] for s in images), default=0), max((s[0] for s in images), default=0)),
        max((a.texels for a in arguments if a.memory == "image1d"), default=0),
    )


def _find(
    workload: Workload, variant: Variant, limits: DeviceLimits, layout: str | None
) -> Config | Infeasible:
    spec = SPECS[workload.op]
    safe = spec.safe(workload, limits, layout)
    fits = safe.variant == variant.name and layout in (None, spec.layout(workload, safe))
    if fits and spec.check(workload, safe, limits) is None:
        return safe
    return Space(spec, workload, variant, limits, layout).find()
