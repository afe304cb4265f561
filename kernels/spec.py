"""What a kernel declares of itself.

Nothing here touches a device. A :class:`KernelSpec` is plain Python and NumPy, so a tuner that
knows no kernel can enumerate, build, verify and time every one of them, and tests can hold a spec
against limits of devices that are not there.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np

from .feasible import CHECKS, Infeasible
from .source import Source, read_source
from .space import Space
from .types import Argument, Array, Config, DeviceLimits, Geometry, Value, Variant, Workload


@dataclass
class KernelSpec(ABC):
    """What one operation declares, for the tuner, the plan, the tests and the report.

    Sub-classes lie in ``kernels/<op>/spec.py`` and are registered in ``kernels/__init__.py``.
    """

    op: ClassVar[str]
    #: File below ``kernels/`` that holds the variants.
    file: ClassVar[str]
    #: A typical workload, canonical, and the model that it is of.
    example: ClassVar[str]
    example_model: ClassVar[str] = "SmolLM2-135M, Q4_1"
    #: Raise it when the meaning of a parameter changes while the source stays the same.
    version: ClassVar[int] = 1
    variants: ClassVar[tuple[Variant, ...]] = (Variant("buffer", "buffer"),)
    #: Tags of a workload that name a dtype, and the dtypes that the operation takes there.
    dtypes: ClassVar[Mapping[str, tuple[str, ...]]] = MappingProxyType({})
    _digest: str | None = field(default=None, init=False, repr=False)

    # -- the space -----------------------------------------------------------------------------

    @abstractmethod
    def parameters(self, workload: Workload, variant: Variant) -> Mapping[str, tuple[Value, ...]]:
        """Parameter names and their values, before any constraint."""

    def constraint(self, workload: Workload, config: Config, limits: DeviceLimits) -> str | None:
        """The spec's own constraint that ``config`` breaks, in words; None if it breaks none."""
        return None

    @abstractmethod
    def safe(self, workload: Workload, limits: DeviceLimits, layout: str | None = None) -> Config:
        """A configuration that works on any OpenCL 1.2 device; in ``layout`` if one is given."""

    def safe_of_kind(self, workload: Workload, limits: DeviceLimits, kind: str) -> Config | None:
        """A safe configuration of one kind of variant; None if there is none on this device."""
        safe = self.safe(workload, limits)
        if self.variant(safe.variant).kind == kind:
            return safe
        # The same parameters, if a variant of that kind has them, else the first that may run.
        names = [variant.name for variant in self.variants if variant.kind == kind]
        same = (Config(name, safe.params) for name in names)
        alike = [config for config in same if self.contains(workload, config)]
        for config in (*alike, *self.space(workload, kind)):
            if self.check(workload, config, limits) is None:
                layout = self.layout(workload, config)
                return self.safe(workload, limits, layout) if layout else config
        return None

    def starts(self, workload: Workload, limits: DeviceLimits) -> tuple[Config, ...]:
        """Configurations that a search tries first, most promising first."""
        return (self.safe(workload, limits),)

    def local_memory(self, workload: Workload, config: Config) -> int:
        """Bytes of local memory of one work-group."""
        return 0

    def layout(self, workload: Workload, config: Config) -> str | None:
        """The weight layout that ``config`` reads; None for an operation without weights."""
        return None

    def way(self, config: Config) -> str:
        """What a search tries one of before it trusts what it learns: the variant, and whatever
        else says little of how quick others are."""
        return config.variant

    def conversions(self, workload: Workload, config: Config) -> Mapping[str, Workload]:
        """What has to be launched before ``config`` can run, by the input that it makes: that
        input's tensor lies in a buffer, and ``config`` reads it from an image of its own."""
        return {}

    def in_dtype(self, workload: Workload, tag: str, dtype: str) -> Workload:
        """``workload`` with another of :attr:`dtypes`, its sizes rounded up to what that asks."""
        return workload.replace(**{tag: dtype})

    def piece(self, workload: Workload, limits: DeviceLimits) -> Workload | None:
        """One of the pieces that ``workload`` is cut into because the device can't hold it whole;
        None where it is not cut."""
        return None

    # -- the kernel ----------------------------------------------------------------------------

    @abstractmethod
    def kernel(self, workload: Workload, config: Config) -> str:
        """The name of the kernel function."""

    @abstractmethod
    def defines(self, workload: Workload, config: Config) -> Mapping[str, Value]:
        """Macros of the build."""

    @abstractmethod
    def geometry(self, workload: Workload, config: Config) -> Geometry:
        """Launch geometry. For sizes below a bucket call it with ``workload.replace(m=...)``."""

    @abstractmethod
    def arguments(self, workload: Workload, config: Config) -> tuple[Argument, ...]:
        """The kernel's arguments, in order."""

    # -- verification and cost -----------------------------------------------------------------

    @abstractmethod
    def inputs(self, workload: Workload, rng: np.random.Generator) -> dict[str, Any]:
        """Random logical inputs (arrays, and :class:`~.weights.Matrix` for weights) by name."""

    def pack(
        self, workload: Workload, config: Config, inputs: Mapping[str, Any]
    ) -> dict[str, Array]:
        """Physical arrays for every argument that is not a pure output."""
        return {
            a.name: inputs[a.name] for a in self.arguments(workload, config) if a.role != "output"
        }

    @abstractmethod
    def reference(self, workload: Workload, inputs: Mapping[str, Any]) -> dict[str, Array]:
        """Outputs in float64 (integers where they are integers), logical shape, from ``inputs``."""

    def outputs(self, workload: Workload, raw: Mapping[str, Array]) -> dict[str, Array]:
        """The logical part of what the kernel wrote, shaped like the reference."""
        return dict(raw)

    def tolerance(self, workload: Workload) -> float:
        """Largest accepted relative L2 error of an output; 0 asks for equality."""
        return 2e-5

    @abstractmethod
    def flops(self, workload: Workload) -> int:
        """Arithmetic operations (a multiply-add is two)."""

    @abstractmethod
    def bytes(self, workload: Workload) -> int:
        """Fewest bytes that must move: each input read once, each output written once."""

    # -- what follows from the above -------------------------------------------------------------

    def variant(self, name: str) -> Variant:
        for variant in self.variants:
            if variant.name == name:
                return variant
        raise ValueError(f"{self.op} has no variant {name!r}")

    def source(self, workload: Workload, config: Config) -> Source:
        defines = sorted(self.defines(workload, config).items())
        options = ("-cl-std=CL1.2", "-w", *(f"-D{name}={value}" for name, value in defines))
        return Source(read_source(self.file), self.kernel(workload, config), options)

    def digest(self) -> str:
        """Changes when the kernel's source or its ``version`` does; part of every key."""
        if self._digest is None:
            text = f"{self.op}\0{self.version}\0{read_source(self.file)}"
            self._digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        return self._digest

    def space(self, workload: Workload, kind: str | None = None) -> Iterator[Config]:
        """Every configuration of every variant (of one kind), before constraints."""
        for variant in self.variants:
            if kind not in (None, variant.kind):
                continue
            parameters = self.parameters(workload, variant)
            for values in product(*parameters.values()):
                yield Config.of(variant.name, **dict(zip(parameters, values, strict=True)))

    def contains(self, workload: Workload, config: Config) -> bool:
        """Whether ``config`` is a point of the space: a cache file may hold anything."""
        if config.variant not in {variant.name for variant in self.variants}:
            return False
        values = self.parameters(workload, self.variant(config.variant))
        given = dict(config.params)
        return given.keys() == values.keys() and all(given[n] in values[n] for n in values)

    def check(self, workload: Workload, config: Config, limits: DeviceLimits) -> Infeasible | None:
        """Why ``config`` cannot run under ``limits``; None if nothing speaks against it."""
        found = (check(self, workload, config, limits) for check in CHECKS)
        return next((broken for broken in found if broken), None)

    def feasible(
        self, workload: Workload, limits: DeviceLimits, kind: str | None = None
    ) -> list[Config]:
        """Every configuration that nothing speaks against, in the order of :meth:`space`."""
        kinds = [variant for variant in self.variants if kind in (None, variant.kind)]
        spaces = (Space(self, workload, variant, limits) for variant in kinds)
        return [config for space in spaces for config in space.feasible()]
