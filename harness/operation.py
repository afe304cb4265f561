"""One operation on one device: random inputs, tensors, launches, and the check against NumPy.

The tuner runs every candidate through this, the engine what it has to verify before use, and the
tests every kernel: there is one way to run a spec.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..kernels import SPECS
from ..kernels.source import Source
from ..kernels.spec import KernelSpec
from ..kernels.types import Argument, Array, Config, Geometry, Memory, Workload
from ..runtime.context import Context
from ..runtime.launch import Launch
from ..runtime.memory import Tensor
from ..runtime.program import Program
from .compare import Verdict, compare

#: Elements behind every output that a kernel must leave alone.
GUARD = 64


def label_of(workload: Workload, config: Config) -> str:
    """How messages name a configuration: ``gemv k=576 n=960 w=q4_1 {...}``."""
    return f"{workload} {config}"


def source_of(workload: Workload, config: Config) -> Source:
    return SPECS[workload.op].source(workload, config)


def exceeded(workload: Workload, config: Config, program: Program) -> str:
    """Which of the compiled kernel's own limits, that only the driver knows, a launch would exceed;
    empty if none."""
    items = math.prod(SPECS[workload.op].geometry(workload, config).local_size)
    most, memory = program.work_group_limit(), program.local_memory()
    if items > most:
        return f"compiled kernel: work-group {items} > {most} work-items"
    if memory > program.context.info.local_memory:
        return f"compiled kernel: local memory {memory} > {program.context.info.local_memory} bytes"
    return ""


def poison(dtype: np.dtype[Any], count: int) -> Array:
    """What outputs hold before a launch: NaN, or the smallest integer."""
    if np.issubdtype(dtype, np.floating):
        return np.full(count, np.nan, dtype)
    return np.full(count, np.iinfo(dtype).min, dtype)


def guard(dtype: np.dtype[Any]) -> Array:
    """What lies behind outputs: values that change even if a kernel only adds zero to them.

    Poison would not do: NaN plus anything is the same NaN.
    """
    values = (-0.0, 1.0) if np.issubdtype(dtype, np.floating) else (np.iinfo(dtype).min, 1)
    return np.resize(np.array(values, dtype), GUARD)


class Bound:
    """A launch together with the tensors it reads and writes, by argument name.

    ``memories`` says as what the kernel sees each of them.
    """

    def __init__(
        self,
        program: Program,
        tensors: Mapping[str, Tensor],
        memories: Mapping[str, Memory],
        geometry: Geometry,
    ) -> None:
        self.tensors, self.memories = dict(tensors), dict(memories)
        seen = [tensor.seen_as(memories[name]) for name, tensor in tensors.items()]
        self.launch = Launch(program, seen, geometry)
        self._program, self._geometry = program, geometry
        #: Seconds of the first launch, where some drivers finish compiling.
        self.first_launch: float | None = None

    def twin(self, names: set[str]) -> Bound:
        """The same launch on copies of the tensors called ``names``, sharing the others."""
        copies: dict[str, Tensor] = {}
        try:
            for name in names:
                copies[name] = self.tensors[name].copy()
            return Bound(self._program, self.tensors | copies, self.memories, self._geometry)
        except BaseException:
            for tensor in copies.values():
                tensor.release()
            raise

    def release(self) -> None:
        for tensor in self.tensors.values():
            tensor.release()


class Operation:
    """A workload on a context. Inputs and the reference are made once, from ``seed``."""

    def __init__(self, context: Context, workload: Workload, *, seed: int = 0) -> None:
        self.context, self.workload = context, workload
        self.spec: KernelSpec = SPECS[workload.op]
        self._rng = np.random.default_rng(seed)
        self.inputs = self.spec.inputs(workload, self._rng)
        self._reference: dict[str, Array] | None = None
        self._packed: tuple[str, dict[str, Array]] | None = None

    @property
    def reference(self) -> dict[str, Array]:
        if self._reference is None:
            self._reference = self.spec.reference(self.workload, self.inputs)
        return self._reference

    def pack(self, config: Config) -> dict[str, Array]:
        """Physical arrays for ``config``; the last layout's are kept."""
        layout = self.spec.layout(self.workload, config) or ""
        if self._packed is None or self._packed[0] != layout:
            self._packed = (layout, self.spec.pack(self.workload, config, self.inputs))
        return self._packed[1]

    def bind(self, program: Program, config: Config) -> Bound:
        """Fresh tensors, outputs poisoned and guarded, bound to a launch."""
        return bind(self.context, self.workload, program, config, self.pack(config))

    def verify(self, program: Program, config: Config, *, bound: Bound | None = None) -> Verdict:
        """Launch once and compare with the reference, then once more at a smaller odd size."""
        own = bound or self.bind(program, config)
        try:
            verdict = check(self.spec, self.workload, config, own, self.reference)
        finally:
            if bound is None:
                own.release()
        smaller = self._smaller()
        if not verdict.ok or smaller is None:
            return verdict
        inputs = self.spec.inputs(smaller, self._rng)
        arrays = self.spec.pack(smaller, config, inputs)
        small = bind(self.context, smaller, program, config, arrays)
        try:
            second = check(self.spec, smaller, config, small, self.spec.reference(smaller, inputs))
        finally:
            small.release()
        message = f"at m={smaller.size('m')}: {second.message}" if second.message else ""
        return Verdict(second.ok, max(verdict.error, second.error), message)

    def _smaller(self) -> Workload | None:
        """The workload with fewer tokens than its bucket holds; None where it has no bucket.

        Not for big weights: their second set of random numbers would cost more than it shows.
        """
        sizes = dict(self.workload.items)
        most = sizes.get("m", 1)
        if not isinstance(most, int) or most < 2 or self.spec.bytes(self.workload) > 1 << 24:
            return None
        return self.workload.replace(m=int(self._rng.integers(1, most)))


def bind(
    context: Context,
    workload: Workload,
    program: Program,
    config: Config,
    arrays: Mapping[str, Array],
) -> Bound:
    """Allocate the arguments of ``workload``, fill them from ``arrays``, and bind a launch."""
    spec = SPECS[workload.op]
    arguments = spec.arguments(workload, config)
    tensors: dict[str, Tensor] = {}
    try:
        for argument in arguments:
            tensors[argument.name] = _tensor(context, workload, argument, arrays)
        memories = {argument.name: argument.memory for argument in arguments}
        return Bound(program, tensors, memories, spec.geometry(workload, config))
    except BaseException:
        for tensor in tensors.values():
            tensor.release()
        raise


def _tensor(
    context: Context, workload: Workload, argument: Argument, arrays: Mapping[str, Array]
) -> Tensor:
    what = f"{workload}: {argument.name}"
    home: Memory = "image2d" if argument.memory == "image2d" else "buffer"
    if argument.role not in ("output", "inout"):
        return context.upload(arrays[argument.name], home, what=what)
    dtype = np.dtype(argument.dtype)
    inout = argument.role == "inout"
    start = arrays[argument.name].reshape(-1) if inout else _poisoned(argument)
    if home == "image2d":
        # Writes outside an image go nowhere: there is nothing behind it to guard.
        return context.upload(start.reshape(argument.shape), home, what=what)
    return context.upload(np.concatenate([start, guard(dtype)], dtype=dtype), what=what)


def _poisoned(argument: Argument) -> Array:
    return poison(np.dtype(argument.dtype), int(np.prod(argument.shape)))


def check(
    spec: KernelSpec,
    workload: Workload,
    config: Config,
    bound: Bound,
    reference: Mapping[str, Array],
) -> Verdict:
    """Launch ``bound`` once, compare its outputs with ``reference``, and look at the guards."""
    start = time.perf_counter()
    bound.launch.enqueue()
    bound.launch.program.context.finish()
    if bound.first_launch is None:
        bound.first_launch = time.perf_counter() - start
    raw: dict[str, Array] = {}
    for argument in spec.arguments(workload, config):
        if argument.role not in ("output", "inout"):
            continue
        flat = bound.tensors[argument.name].read()
        if argument.memory == "image2d":
            raw[argument.name] = flat
            continue
        count = int(np.prod(argument.shape))
        if flat[count:].tobytes() != guard(flat.dtype).tobytes():
            return Verdict(False, float("inf"), f"{argument.name}: written past its end")
        raw[argument.name] = flat[:count].reshape(argument.shape)
    return compare(spec.outputs(workload, raw), reference, spec.tolerance(workload))
