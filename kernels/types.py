"""The vocabulary of tuning: workloads, configurations, and what a kernel declares of itself.

Nothing here touches a device. A :class:`KernelSpec` is plain Python and NumPy, so a tuner that
knows no kernel can enumerate, build, verify and time every one of them, and tests can hold a spec
against limits of devices that are not there.
"""

from __future__ import annotations

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from .feasible import Infeasible, checks
from .source import Source, read_source

Array = NDArray[Any]
Value = int | str
Role = Literal["input", "weight", "state", "output", "inout"]
Memory = Literal["buffer", "image1d", "image2d"]

#: Bytes of one RGBA texel, by element type.
TEXEL_BYTES = {"float32": 16, "float16": 8, "uint32": 16}


class DeviceLimits(Protocol):
    """What a spec may know of a device: numbers and feature names, never a device's own name."""

    @property
    def type(self) -> str: ...
    @property
    def compute_units(self) -> int: ...
    @property
    def local_memory(self) -> int: ...
    @property
    def max_work_group_size(self) -> int: ...
    @property
    def max_work_item_sizes(self) -> tuple[int, ...]: ...
    @property
    def max_alloc(self) -> int: ...
    @property
    def image2d_max_width(self) -> int: ...
    @property
    def image2d_max_height(self) -> int: ...
    @property
    def image_max_buffer_size(self) -> int: ...
    @property
    def features(self) -> frozenset[str]: ...


@dataclass(frozen=True)
class Workload:
    """One operation at one problem size and one set of dtypes.

    ``items`` are sorted pairs; integers are sizes, strings are dtypes and flags. The canonical
    text (``gemv k=576 n=1536 w=q4_1``) is what the cache file stores and what people read.
    """

    op: str
    items: tuple[tuple[str, Value], ...]

    @classmethod
    def of(cls, op: str, **items: Value) -> Workload:
        return cls(op, tuple(sorted(items.items())))

    @classmethod
    def parse(cls, text: str) -> Workload:
        """Inverse of ``str``. Raises ``ValueError`` for a text that is not canonical."""
        op, *pairs = text.split(" ")
        items: dict[str, Value] = {}
        for pair in pairs:
            name, sign, value = pair.partition("=")
            if not sign or not value:
                raise ValueError(f"not a workload: {text!r}")
            items[name] = int(value) if re.fullmatch(r"-?\d+", value) else value
        workload = cls.of(op, **items)
        if str(workload) != text:
            raise ValueError(f"not a canonical workload: {text!r}")
        return workload

    def __str__(self) -> str:
        return " ".join([self.op, *(f"{name}={value}" for name, value in self.items)])

    @cached_property
    def _map(self) -> dict[str, Value]:
        return dict(self.items)

    def size(self, name: str) -> int:
        value = self._map[name]
        if not isinstance(value, int):
            raise TypeError(f"{self}: {name} is not a size")
        return value

    def tag(self, name: str, default: str | None = None) -> str:
        value = self._map.get(name, default)
        if not isinstance(value, str):
            raise KeyError(f"{self}: no tag {name}")
        return value

    def replace(self, **items: Value) -> Workload:
        return Workload.of(self.op, **{**self._map, **items})


@dataclass(frozen=True)
class Config:
    """One way to run a workload: a variant and a value for each of its parameters."""

    variant: str
    params: tuple[tuple[str, Value], ...]

    @classmethod
    def of(cls, variant: str, /, **params: Value) -> Config:
        return cls(variant, tuple(sorted(params.items())))

    @classmethod
    def parse(cls, text: str) -> Config:
        """Inverse of ``str``. Raises ``ValueError`` for anything that is not such a text."""
        data = json.loads(text)
        if not isinstance(data, dict) or not isinstance(data.get("variant"), str):
            raise ValueError(f"not a configuration: {text!r}")
        params = {k: v for k, v in data.items() if k != "variant"}
        if not all(type(v) in (int, str) for v in params.values()):
            raise ValueError(f"not a configuration: {text!r}")
        return cls.of(data["variant"], **params)

    def __str__(self) -> str:
        data = {"variant": self.variant, **dict(self.params)}
        return json.dumps(data, sort_keys=True, separators=(",", ":"))

    @cached_property
    def _map(self) -> dict[str, Value]:
        return dict(self.params)

    def __getitem__(self, name: str) -> int:
        value = self._map[name]
        if not isinstance(value, int):
            raise TypeError(f"{self}: {name} is not a number")
        return value

    def replace(self, **params: Value) -> Config:
        return Config.of(self.variant, **{**self._map, **params})

    def get(self, name: str, default: int) -> int:
        return self[name] if name in self._map else default


@dataclass(frozen=True)
class Variant:
    """A way to do an operation: where its operands lie, and the device features it needs."""

    name: str
    kind: Literal["buffer", "image"]
    requires: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Argument:
    """One kernel argument, in order.

    ``name`` is the tensor's name; a weight's packed parts are ``tensor.part``. ``shape`` is of the
    physical array in elements; for an image2d it is ``(height, width, 4)``. An image1d is a buffer
    that the kernel sees as RGBA texels (``image1d_buffer_t``): four elements each, the last one
    filled up, at no cost of a copy. ``streams`` marks what comes from memory afresh at each use in
    a model (weights, KV cache), so that a measurement does not serve it from a cache.
    """

    name: str
    role: Role
    dtype: str
    shape: tuple[int, ...]
    memory: Memory = "buffer"
    streams: bool = False

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize

    @property
    def texels(self) -> int:
        """RGBA texels that hold the array."""
        return -(-self.nbytes // TEXEL_BYTES[self.dtype])


@dataclass(frozen=True)
class Geometry:
    """Global and local size of a launch, same rank; global is a multiple of local."""

    global_size: tuple[int, ...]
    local_size: tuple[int, ...]

    @classmethod
    def cover(cls, items: tuple[int, ...], local: tuple[int, ...]) -> Geometry:
        """The smallest geometry of work-groups ``local`` that covers ``items`` work-items."""
        return cls(tuple(-(-n // size) * size for n, size in zip(items, local, strict=True)), local)


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
        return next((found for found in checks(self, workload, config, limits) if found), None)

    def feasible(
        self, workload: Workload, limits: DeviceLimits, kind: str | None = None
    ) -> list[Config]:
        """Every configuration that nothing speaks against, in the order of :meth:`space`."""
        return [c for c in self.space(workload, kind) if self.check(workload, c, limits) is None]
