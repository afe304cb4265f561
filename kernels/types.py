"""The vocabulary of tuning: workloads, configurations, variants, arguments and geometries."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

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
