"""What every spec promises, held against devices that are not there."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

import clk_devices
from clk_cases import TINY, is_for
from clk_run import Limits, Runner
from clkiln.kernels import SPECS
from clkiln.kernels.types import DeviceLimits, Workload
from clkiln.kernels.variants import kinds_of
from clkiln.runtime.limits import PROFILES, read_limits
from clkiln.runtime.opencl import cl
from clkiln.runtime.pretend import limited_info

LEAST = Limits()
IMAGES = frozenset({"images", "image_buffers"})
TEXELS = 1 << 27
DEVICES: dict[str, DeviceLimits] = {
    "least": LEAST,
    "least cpu": Limits("cpu"),
    "one item": Limits("gpu", 8, 48 << 10),
    "odd": Limits("gpu", 3, 16 << 10, 48, (48, 16, 16)),
    "simulator": Limits(
        "cpu",
        4,
        32 << 10,
        1024,
        (1024, 1024, 1024),
        features=IMAGES,
    ),
    "cpu": Limits("cpu", 64, 2 << 20, 4096, (4096,) * 3, 8 << 30, 16384, 16384, IMAGES, TEXELS),
    "gpu": Limits(
        "gpu", 132, 48 << 10, 1024, (1024, 1024, 64), 8 << 30, 32768, 32768, IMAGES, TEXELS
    ),
}
#: A GPU with everything, under each limit profile.
DEVICES |= {
    f"gpu {name}": limited_info(clk_devices.make_info(features=IMAGES | {"fp16", "cl12"}), limits)
    for name in PROFILES
    for limits in (read_limits([name]),)
}
MODEL = {"heads": 9, "kv_heads": 3, "head_dim": 64, "kv": "f16", "ctx": 2048}
REAL = (
    Workload.of("add", d=576, m=256),
    Workload.of("argmax", n=49152),
    Workload.of("attention_decode", **MODEL),
    Workload.of("attention_decode", **{**MODEL, "heads": 14, "kv_heads": 2, "head_dim": 128}),
    Workload.of("attention_prefill", m=256, **MODEL),
    Workload.of("attention_prefill", m=512, **{**MODEL, "head_dim": 256, "kv": "f32"}),
    Workload.parse(SPECS["conv2d"].example),
    Workload.parse(
        "conv2d act=relu bias=yes ci=64 co=64 dilation=1x1 groups=1 ih=56 iw=56 kernel=3x3 n=1"
        " pad=1x1 stride=1x1 w=f16"
    ),
    Workload.parse(
        "conv2d act=none bias=no ci=256 co=64 dilation=1x1 groups=1 ih=14 iw=14 kernel=1x1 n=1"
        " pad=0x0 stride=1x1 w=f32"
    ),
    Workload.parse(
        "conv2d act=relu bias=yes ci=144 co=144 dilation=1x1 groups=144 ih=56 iw=56 kernel=3x3 n=1"
        " pad=1x1 stride=2x2 w=f32"
    ),
    Workload.parse(
        "conv2d act=relu bias=no ci=128 co=128 dilation=1x1 groups=32 ih=56 iw=56 kernel=3x3 n=1"
        " pad=1x1 stride=1x1 w=f32"
    ),
    Workload.parse("gelu bias=yes d=3072 form=erf m=197"),
    Workload.parse("gelu bias=no d=768 form=tanh m=1"),
    Workload.parse("layernorm bias=yes d=768 eps=1e-06 m=197"),
    Workload.of("rmsnorm", d=576, m=1, eps="1e-05"),
    Workload.of("roof_fma", mops=1024),
    Workload.of("roof_read", mb=64),
    Workload.of("rope", m=256, rope_dim=64, style="half", **MODEL),
    Workload.of("rope", m=256, rope_dim=64, style="half", norm="yes", eps="1e-06", **MODEL),
    Workload.of("softmax", n=49152, m=1),
    Workload.of("to_image", k=576, m=1),
    Workload.of("to_image", k=1536, m=256),
    Workload.parse("transpose a=1 b=197 c=12 d=64 dtype=f32 perm=acbd"),
    Workload.parse("transpose a=1 b=3 c=224 d=224 dtype=f32 perm=acdb"),
    Workload.parse("transpose a=1 b=12 c=197 d=64 dtype=f16 perm=abdc"),
)
SMALL = [Workload.parse(text) for texts in TINY.values() for text in texts]
WORKLOADS = [*REAL, *SMALL]


@pytest.mark.parametrize("device", DEVICES)
def test_the_safe_configuration_is_feasible(device: str) -> None:
    for workload in WORKLOADS:
        spec, limits = SPECS[workload.op], DEVICES[device]
        config = spec.safe(workload, limits)
        broken = spec.check(workload, config, limits)
        assert (broken is None) == is_for(spec, limits), f"{workload} {config}: {broken}"


@pytest.mark.parametrize("device", DEVICES)
def test_where_a_search_starts_is_in_its_space(device: str) -> None:
    """What is outside can't be told to a sampler, and is not taken from the cache file."""
    narrow = [
        Workload.of("gemv", n=n, k=32 * blocks, w="q4_0", fuse="none", bias="no")
        for n in (7, 960)
        for blocks in range(1, 17)
    ]
    for workload in [*WORKLOADS, *narrow]:
        spec = SPECS[workload.op]
        for config in spec.starts(workload, DEVICES[device]):
            if spec.check(workload, config, DEVICES[device]) is None:
                assert spec.contains(workload, config), f"{workload} {config}"


@pytest.mark.parametrize("workload", REAL, ids=str)
def test_there_is_something_to_choose(workload: Workload) -> None:
    spec = SPECS[workload.op]
    for name, kind in product(("cpu", "gpu"), kinds_of(workload.op)):
        assert 10 <= len(spec.feasible(workload, DEVICES[name], kind)) <= 500, (name, kind)


@pytest.mark.parametrize("op", ["attention_decode", "attention_prefill", "rope"])
def test_sizes_of_a_bucket_are_no_macros(op: str) -> None:
    """One build serves every number of tokens and every context."""
    rng = np.random.default_rng(0)
    for workload in (w for w in WORKLOADS if w.op == op):
        spec = SPECS[op]
        smaller = workload.replace(ctx=workload.size("ctx") - 2)
        if op != "attention_decode":
            smaller = smaller.replace(m=workload.size("m") - 2)
        configs = list(spec.space(workload))
        for i in rng.integers(0, len(configs), 5):
            assert spec.source(workload, configs[i]) == spec.source(smaller, configs[i])


@pytest.mark.parametrize("workload", SMALL, ids=str)
def test_inputs_fit_the_arguments(workload: Workload) -> None:
    spec = SPECS[workload.op]
    config = spec.safe(workload, LEAST)
    inputs = spec.inputs(workload, np.random.default_rng(0))
    packed = spec.pack(workload, config, inputs)
    for argument in spec.arguments(workload, config):
        if argument.role == "output":
            assert argument.name not in packed
        else:
            array = packed[argument.name]
            assert (array.shape, array.dtype) == (argument.shape, np.dtype(argument.dtype))
    assert all(np.isfinite(array).all() for array in spec.reference(workload, inputs).values())
    assert spec.bytes(workload) > 0 and spec.flops(workload) >= 0


@pytest.mark.parametrize("op", sorted(SPECS))
def test_local_memory_is_what_the_compiler_counts(runner: Runner, op: str) -> None:
    """With a single work-item a compiler may need none of it."""
    rng = np.random.default_rng(0)
    spec, workload = SPECS[op], Workload.parse(TINY[op][-1])
    feasible = spec.feasible(workload, runner.limits)
    local = [c for c in feasible if spec.local_memory(workload, c)] or feasible[:1]
    for i in rng.integers(0, len(local), 2):
        kernel = runner.kernel(spec.source(workload, local[i]))
        counted = kernel.get_work_group_info(
            cl.kernel_work_group_info.LOCAL_MEM_SIZE, runner.queue.device
        )
        most = spec.local_memory(workload, local[i])
        items = int(np.prod(spec.geometry(workload, local[i]).local_size))
        assert counted == most if items > 1 else counted <= most, f"{workload} {local[i]}"
