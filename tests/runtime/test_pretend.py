"""Every limit is enforced on a real device: a planted breach is an error that names the profile.

Each breach is seen to be none on the device itself, so that nothing but the limit can be at fault.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from clk_pocl import find_pocl
from clkiln.errors import BuildError, LaunchError, OutOfDeviceMemory
from clkiln.kernels.source import Source
from clkiln.kernels.types import Geometry
from clkiln.runtime.context import Context
from clkiln.runtime.launch import Launch
from clkiln.runtime.limits import Limits, read_limits
from clkiln.runtime.pretend import limited
from clkiln.runtime.program import Program, ProgramLoader

PLAIN = "__kernel void k(__global float *x) { x[get_global_id(0)] = 1.0f; }"
LOCAL = """
__kernel __attribute__((reqd_work_group_size(64, 1, 1))) void k(__global float *x) {
  __local float all[12000];
  for (int i = get_local_id(0); i < 12000; i += 64) all[i] = x[i % 64];
  barrier(CLK_LOCAL_MEM_FENCE);
  float sum = 0;
  for (int i = 0; i < 12000; i += 3 + get_local_id(0)) sum += all[i];
  x[get_local_id(0)] = sum;
}
"""


@contextmanager
def device(*names: str, limits: Limits | None = None) -> Iterator[Context]:
    """Debian's PoCL under limits, with memory for whatever is meant to be too much."""
    profile = read_limits(names) if limits is None else limits
    with Context(limited(find_pocl("debian"), profile), budget=4 << 30) as context:
        yield context


def load(context: Context, text: str) -> Program:
    return ProgramLoader(context).load(Source(text, "k", ("-cl-std=CL1.2",)), "planted")


# -- builds ----------------------------------------------------------------------------------------

#: A source that a profile forbids, and the same thing in a branch that the compiler leaves out.
SOURCES = {
    "cl-1.1": "static float one() { return 1.0f; }\n"
    "__kernel void k(__global float *x) { x[0] = one(); }",
    "no-images": "__kernel void k(__read_only image2d_t i, __global float4 *x) {\n"
    "  x[0] = read_imagef(i, (int2)(0, 0)); }",
    "no-asm": '__kernel void k(__global int *x) { __asm__ volatile("nop"); x[0] = 1; }',
}


@pytest.mark.parametrize("name", SOURCES)
def test_a_source_that_uses_what_is_missing_does_not_build(name: str) -> None:
    with device() as context:
        load(context, SOURCES[name])
    for also in ((name,), ("small", "no-images")):
        with device(*also) as context, pytest.raises(BuildError) as error:
            load(context, SOURCES[name])
        assert "planted does not compile on " in str(error.value)
        assert f"(limits: {', '.join(context.info.limits.sources)})" in str(error.value)


@pytest.mark.parametrize("name", SOURCES)
def test_what_the_preprocessor_leaves_out_is_not_used(name: str) -> None:
    with device(name) as context:
        load(context, f"#if 0\n{SOURCES[name]}\n#endif\n{PLAIN}")


def test_enabling_a_missing_extension_is_an_error() -> None:
    """PoCL here ignores the pragma, which the profile must not."""
    pragma = {
        word: f"#pragma OPENCL EXTENSION cl_khr_fp16 : {word}\n{PLAIN}"
        for word in ("enable", "disable")
    }
    with device() as context:
        load(context, pragma["enable"])
    with device("no-fp16") as context:
        load(context, pragma["disable"])
        load(context, f"#ifdef cl_khr_fp16\n{pragma['enable']}\n#else\n{PLAIN}\n#endif")
        with pytest.raises(BuildError, match=r"(?s)\(limits: no-fp16\).*without fp16 there is no"):
            load(context, pragma["enable"])


def test_halves_are_lost_on_a_device_that_has_them() -> None:
    """Intel's runtime computes with halves, pragma or not."""
    from clkiln.runtime.device import list_devices

    halves = "__kernel void k(__global half *x) { x[0] = x[0] * x[0]; }"
    found = [device for device in list_devices() if device.info.fp16]
    if not found:
        pytest.skip("no device with cl_khr_fp16 here")
    with Context(found[0]) as context:
        load(context, halves)
    with (
        Context(limited(found[0], read_limits(["no-fp16"]))) as context,
        pytest.raises(BuildError, match="no-fp16"),
    ):
        load(context, halves)


def test_a_line_keeps_its_number() -> None:
    """What a compiler says of a restricted source is where it stands in the source."""
    with device("small") as context, pytest.raises(BuildError, match=r"[^\d]3:\d+"):
        load(context, f"{PLAIN}\n\nwrong wrong;")


# -- allocations -----------------------------------------------------------------------------------


def test_an_allocation_beyond_the_largest() -> None:
    nbytes = (128 << 20) + 4
    with device() as context:
        context.empty((nbytes,), np.uint8, what="w").release()
    with device("alloc-128m") as context:
        context.empty((nbytes - 4,), np.uint8, what="w").release()
        with pytest.raises(OutOfDeviceMemory) as error:
            context.empty((nbytes,), np.uint8, what="w")
        assert str(error.value) == (
            "w takes 128 MiB; this device's largest allocation is 128 MiB (limits: alloc-128m)"
        )
        assert context.memory.used == 0


@pytest.mark.parametrize("shape", [(1, 4097, 4), (4097, 1, 4)])
def test_an_image_beyond_the_largest(shape: tuple[int, ...]) -> None:
    with device() as context:
        context.empty(shape, np.float32, "image2d", what="w").release()
    with device("images-4096") as context:
        context.empty((4096, 1, 4), np.float32, "image2d", what="w").release()
        with pytest.raises(OutOfDeviceMemory, match=r"4096 x 4096 \(limits: images-4096\)"):
            context.empty(shape, np.float32, "image2d", what="w")
        assert context.memory.used == 0


def test_no_image_at_all() -> None:
    with (
        device("no-images") as context,
        pytest.raises(OutOfDeviceMemory, match=r"has none \(limits: no-images\)"),
    ):
        context.empty((1, 1, 4), np.float32, "image2d", what="w")


@pytest.mark.parametrize("name", ["small", "no-images", "cl-1.1"])
def test_a_buffer_that_is_no_image_buffer(name: str) -> None:
    with device() as context:
        context.empty((4 * 65537,), np.float32, what="x").seen_as("image1d")
    most = 65536 if name == "small" else 0
    limits = Limits.of({"image_max_buffer_size": 65536}, "small")
    with device(limits=limits if most else read_limits([name])) as context:
        if most:
            context.empty((4 * most,), np.float32, what="x").seen_as("image1d")
        tensor = context.empty((4 * most + 4,), np.float32, what="x")
        with pytest.raises(LaunchError, match=rf"{most + 1} texels.* {most} \(limits: {name}\)"):
            tensor.seen_as("image1d")


# -- launches --------------------------------------------------------------------------------------


def launch(context: Context, text: str, *sizes: int) -> None:
    tensor = context.empty((4096,), np.float32, what="x")
    bound = Launch(load(context, text), [tensor], Geometry(sizes, sizes))
    bound.enqueue()
    context.finish()


def test_a_work_group_beyond_the_largest() -> None:
    with device() as context:
        launch(context, PLAIN, 65)
    with device("group-64") as context:
        launch(context, PLAIN, 64)
        assert load(context, PLAIN).work_group_limit() == 64
        with pytest.raises(
            LaunchError, match=r"planted: launch with a work-group of 65 work-items"
        ) as error:
            launch(context, PLAIN, 65)
        assert str(error.value).endswith("takes 64 (limits: group-64)")


def test_another_geometry_beyond_the_largest() -> None:
    """A launch that is bound already, with the size of another step."""
    with device("group-64") as context:
        tensor = context.empty((4096,), np.float32, what="x")
        bound = Launch(load(context, PLAIN), [tensor], Geometry((64,), (64,)))
        bound.prepare(Geometry((32,), (32,)))
        with pytest.raises(LaunchError, match="group-64"):
            bound.prepare(Geometry((128,), (128,)))


def test_a_local_size_beyond_the_largest() -> None:
    limits = Limits.of({"max_work_item_sizes": [64, 8, 1]}, "file")
    with device(limits=limits) as context:
        launch(context, PLAIN, 8, 8)
        with pytest.raises(LaunchError, match=r"local size of \(4, 16\).*\(limits: file\)"):
            launch(context, PLAIN, 4, 16)


@pytest.mark.parametrize("name", ["local-32k", "small"])
def test_a_kernel_with_more_local_memory_than_there_is(name: str) -> None:
    """48,000 bytes, as the driver says of the compiled kernel."""
    for fitting in ((), ("local-48k",)):
        with device(*fitting) as context:
            launch(context, LOCAL, 64)
    with device(name) as context, pytest.raises(LaunchError) as error:
        launch(context, LOCAL, 64)
    assert "48000 bytes of local memory" in str(error.value)
    assert str(error.value).endswith(f"has 32768 (limits: {name})")
