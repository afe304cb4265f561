"""Runs a kernel spec on a device with plain pyopencl and compares it with its reference.

Outputs hold NaN (integers: their minimum) before the run, so that an element nobody wrote cannot
pass; behind every buffer lies a guard region that must stay as it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from clkiln.kernels.source import Source
from clkiln.kernels.spec import KernelSpec
from clkiln.kernels.types import Argument, Array, Config, Workload
from clkiln.runtime.opencl import cl

GUARD_BYTES = 256
GUARD = 0xA5

CHANNEL_TYPES = {
    "float32": cl.channel_type.FLOAT,
    "float16": cl.channel_type.HALF_FLOAT,
    "uint32": cl.channel_type.UNSIGNED_INT32,
}


@dataclass(frozen=True)
class Limits:
    """A device's limits as a spec sees them; the defaults are the least OpenCL 1.2 allows."""

    type: str = "gpu"
    compute_units: int = 1
    local_memory: int = 32 << 10
    max_work_group_size: int = 1
    max_work_item_sizes: tuple[int, ...] = (1, 1, 1)
    max_alloc: int = 128 << 20
    image2d_max_width: int = 8192
    image2d_max_height: int = 8192
    features: frozenset[str] = frozenset()
    image_max_buffer_size: int = 65536


def limits_of(device: cl.Device) -> Limits:
    kinds = {cl.device_type.CPU: "cpu", cl.device_type.GPU: "gpu"}
    images = bool(device.image_support)
    return Limits(
        next((name for bit, name in kinds.items() if device.type & bit), "accelerator"),
        device.max_compute_units,
        device.local_mem_size,
        device.max_work_group_size,
        tuple(device.max_work_item_sizes),
        device.max_mem_alloc_size,
        device.image2d_max_width if images else 0,
        device.image2d_max_height if images else 0,
        frozenset({"images", "image_buffers"} if images else ()),
        device.image_max_buffer_size if images else 0,
    )


def relative_error(got: Array, want: Array) -> float:
    """Relative L2 error; infinite where shapes differ or a value is not finite."""
    if got.shape != want.shape or not np.isfinite(got).all():
        return float("inf")
    norm = float(np.linalg.norm(np.asarray(want, np.float64)))
    error = float(np.linalg.norm(got.astype(np.float64) - want))
    return error / norm if norm else error


def poison(shape: tuple[int, ...], dtype: str) -> Array:
    """An array that no kernel could have computed."""
    if np.issubdtype(np.dtype(dtype), np.floating):
        return np.full(shape, np.nan, dtype)
    return np.full(shape, np.iinfo(dtype).min, dtype)


class Runner:
    """One device with a queue, and the kernels built on it so far.

    ``options`` are build options beside those of a spec.
    """

    def __init__(self, device: cl.Device, options: tuple[str, ...] = ()) -> None:
        self._options = options
        self.limits = limits_of(device)
        self.context = cl.Context([device])
        self.queue = cl.CommandQueue(
            self.context, properties=cl.command_queue_properties.PROFILING_ENABLE
        )
        self._kernels: dict[str, cl.Kernel] = {}
        #: What lies behind the image buffers of the last launch, by argument.
        self._buffers: dict[str, cl.Buffer] = {}

    def kernel(self, source: Source) -> cl.Kernel:
        if source.digest not in self._kernels:
            program = cl.Program(self.context, source.text)
            program.build([*source.options, *self._options])
            self._kernels[source.digest] = cl.Kernel(program, source.kernel)
        return self._kernels[source.digest]

    def run(
        self,
        spec: KernelSpec,
        workload: Workload,
        config: Config,
        inputs: Mapping[str, Any],
        repeat: int = 0,
    ) -> tuple[dict[str, Array], list[float]]:
        """Outputs, and the seconds of ``repeat`` more launches (which change inout arguments)."""
        kernel = self.kernel(spec.source(workload, config))
        packed = spec.pack(workload, config, inputs)
        arguments = spec.arguments(workload, config)
        memory = [self._memory(argument, packed.get(argument.name)) for argument in arguments]
        kernel.set_args(*memory)
        geometry = spec.geometry(workload, config)

        def launch() -> cl.Event:
            sizes = geometry.global_size, geometry.local_size
            return cl.enqueue_nd_range_kernel(self.queue, kernel, *sizes)

        launch().wait()
        raw = {
            argument.name: self._read(argument, held, f"{workload} {config}")
            for argument, held in zip(arguments, memory, strict=True)
        }
        written = {a.name: raw[a.name] for a in arguments if a.role in ("output", "inout")}
        times = []
        for _ in range(repeat):
            event = launch()
            event.wait()
            times.append((event.profile.end - event.profile.start) * 1e-9)
        return spec.outputs(workload, written), times

    def check(
        self, spec: KernelSpec, workload: Workload, config: Config, inputs: Mapping[str, Any]
    ) -> None:
        """Run and compare every output with the reference, within the spec's tolerance."""
        got, _ = self.run(spec, workload, config, inputs)
        assert_close(spec, workload, config, got, spec.reference(workload, inputs))

    def _memory(self, argument: Argument, array: Array | None) -> Any:
        if array is None:
            array = poison(argument.shape, argument.dtype)
        about = f"{argument.name}: {array.dtype}{array.shape}, not {argument}"
        assert (array.shape, array.dtype) == (argument.shape, np.dtype(argument.dtype)), about
        flags: Any = cl.mem_flags.READ_WRITE | cl.mem_flags.COPY_HOST_PTR
        if argument.memory == "image2d":
            height, width, _ = argument.shape
            texel = cl.ImageFormat(cl.channel_order.RGBA, CHANNEL_TYPES[argument.dtype])
            texels = np.ascontiguousarray(array)
            return cl.create_image(
                self.context, flags, texel, shape=(width, height), hostbuf=texels
            )
        guarded = np.full(array.nbytes + GUARD_BYTES, GUARD, np.uint8)
        guarded[: array.nbytes] = np.frombuffer(array.tobytes(), np.uint8)
        buffer = cl.Buffer(self.context, flags, hostbuf=guarded)
        if argument.memory == "buffer":
            return buffer
        texel = cl.ImageFormat(cl.channel_order.RGBA, CHANNEL_TYPES[argument.dtype])
        self._buffers[argument.name] = buffer
        width = (argument.texels,)
        return cl.create_image(
            self.context, cl.mem_flags.READ_WRITE, texel, shape=width, buffer=buffer
        )

    def _read(self, argument: Argument, memory: Any, about: str) -> Array:
        """An argument's array after the run; fails if its guard region changed."""
        if argument.memory == "image2d":
            texels = np.empty(argument.shape, argument.dtype)
            height, width, _ = argument.shape
            cl.enqueue_copy(self.queue, texels, memory, origin=(0, 0), region=(width, height))
            return texels
        if argument.memory == "image1d":
            memory = self._buffers[argument.name]
        raw = np.empty(argument.nbytes + GUARD_BYTES, np.uint8)
        cl.enqueue_copy(self.queue, raw, memory)
        assert (raw[argument.nbytes :] == GUARD).all(), f"{about} wrote past {argument.name}"
        return raw[: argument.nbytes].view(argument.dtype).reshape(argument.shape)


def assert_close(
    spec: KernelSpec,
    workload: Workload,
    config: Config,
    got: Mapping[str, Array],
    want: Mapping[str, Array],
) -> None:
    """Every output within the spec's tolerance; with a tolerance of 0, equal."""
    assert set(got) == set(want)
    tolerance = spec.tolerance(workload)
    for name, array in want.items():
        about = f"{workload} {config} {name}"
        if tolerance == 0:
            assert np.array_equal(got[name], array), f"{about}: {got[name]} is not {array}"
            continue
        error = relative_error(got[name], array)
        assert error <= tolerance, f"{about}: relative L2 error {error:.3g} > {tolerance:.3g}"
