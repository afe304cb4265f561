"""Which configurations and workloads the tests run: corners, random picks, tiny sizes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from clk_run import Limits
from clkiln.kernels.spec import KernelSpec
from clkiln.kernels.types import Config, DeviceLimits, Workload

#: Stacked parts: of each form of scales, with a zero, minima, and codes of every width.
DTYPES_OF_MIXTURES = ("mix8g32h", "mix6mg16k", "mix5z16g16f", "mix8mg16f", "mix4mg32f")

#: Workloads for a simulator that does about 100,000 multiply-adds a second, by operation. Sizes
#: divide nothing evenly, and everything that changes a kernel's source occurs.
TINY: dict[str, tuple[str, ...]] = {
    "add": ("add d=67 m=3", "add d=44 m=2"),
    "argmax": ("argmax n=1", "argmax n=203"),
    "attention_decode": (
        "attention_decode ctx=37 head_dim=16 heads=6 kv=f16 kv_heads=2",
        "attention_decode ctx=19 head_dim=12 heads=2 kv=f32 kv_heads=2",
        "attention_decode ctx=11 head_dim=5 heads=3 kv=f16 kv_heads=3",
    ),
    "attention_prefill": (
        "attention_prefill ctx=23 head_dim=16 heads=6 kv=f16 kv_heads=2 m=7",
        "attention_prefill ctx=11 head_dim=12 heads=2 kv=f32 kv_heads=2 m=11",
    ),
    "conv2d": (
        "conv2d act=none bias=yes ci=3 co=18 dilation=1x1 groups=1 ih=6 iw=7 kernel=3x3 n=2 pad=0x0"
        " stride=3x3 w=f16",
        "conv2d act=relu bias=no ci=8 co=16 dilation=2x1 groups=2 ih=4 iw=5 kernel=2x3 n=1 pad=1x1"
        " stride=1x2 w=f32",
        "conv2d act=gelu bias=yes ci=12 co=12 dilation=1x2 groups=12 ih=5 iw=7 kernel=3x3 n=1"
        " pad=1x2 stride=1x1 w=f32",
        "conv2d act=silu bias=no ci=9 co=21 dilation=1x1 groups=1 ih=3 iw=5 kernel=1x1 n=2 pad=0x0"
        " stride=1x1 w=f32",
        "conv2d act=gelu_tanh bias=yes ci=5 co=13 dilation=1x1 groups=1 ih=4 iw=4 kernel=3x3 n=1"
        " pad=1x1 stride=2x1 w=f16",
    ),
    "embedding": (
        "embedding k=64 m=5 n=16 of=37 w=q5_0",
        "embedding k=256 m=2 n=37 w=mix6mg16k",
        *(
            f"embedding k=64 m=2 n=37 w={dtype}"
            for dtype in ("f32", "f16", "bf16", "q4_1", "q5_0", "mix8mg16f")
        ),
    ),
    "gelu": ("gelu bias=yes d=67 form=erf m=2", "gelu bias=no d=40 form=tanh m=2"),
    "gemm": (
        "gemm bias=no fuse=none k=64 m=5 n=19 w=f32",
        "gemm bias=yes fuse=none k=43 m=5 n=19 w=f16",
        "gemm bias=no fuse=add k=96 m=5 n=19 w=q8_0",
        "gemm bias=no fuse=swiglu k=64 m=5 n=19 w=q4_0",
        "gemm bias=yes fuse=swiglu k=64 m=5 n=19 w=q5_0",
        "gemm bias=yes fuse=add k=64 m=5 n=19 w=bf16",
        "gemm bias=yes fuse=none k=96 m=5 n=19 w=q4_1",
        "gemm bias=no fuse=none k=64 m=5 n=16 of=37 w=q4_0",
        "gemm bias=yes fuse=swiglu k=64 m=5 n=19 of=51 w=f16",
        "gemm bias=yes fuse=add k=64 m=5 n=16 of=35 w=q8_0",
        "gemm bias=no fuse=none k=256 m=3 n=19 w=mix6mg16k",
        "gemm bias=no fuse=none k=256 m=3 n=19 w=q6_k",
    ),
    "gemv": (
        "gemv bias=no fuse=none k=96 n=37 w=f32",
        "gemv bias=yes fuse=none k=96 n=37 w=f16",
        "gemv bias=no fuse=add k=96 n=37 w=q8_0",
        "gemv bias=no fuse=swiglu k=96 n=37 w=q4_0",
        "gemv bias=yes fuse=swiglu k=96 n=37 w=q5_0",
        "gemv bias=yes fuse=add k=96 n=37 w=bf16",
        "gemv bias=yes fuse=none k=96 n=37 w=q4_1",
        "gemv bias=no fuse=none k=96 n=16 of=37 w=q4_0",
        "gemv bias=yes eps=1e-05 fuse=swiglu k=96 n=19 norm=yes of=51 w=f16",
        "gemv bias=yes fuse=add k=96 n=16 of=35 w=q8_0",
        "gemv bias=no fuse=none k=256 n=19 w=mix6mg16k",
        "gemv bias=no fuse=none k=256 n=19 w=q6_k",
        "gemv bias=no eps=1e-05 fuse=swiglu k=96 n=37 norm=yes w=q4_1",
        "gemv bias=yes eps=1e-05 fuse=none k=43 n=19 norm=yes w=f32",
        "gemv bias=no eps=1e-05 fuse=qkv head_dim=12 heads=4 k=64 kv=f32 kv_heads=2 n=96 norm=yes"
        " rope_dim=8 w=q4_0",
        "gemv bias=yes fuse=qkv head_dim=6 heads=3 k=64 kv=f16 kv_heads=1 n=30 rope_dim=6 w=q8_0",
    ),
    "layernorm": ("layernorm bias=no d=67 eps=1e-05 m=2", "layernorm bias=yes d=40 eps=1e-05 m=3"),
    "rmsnorm": ("rmsnorm d=67 eps=1e-05 m=3", "rmsnorm d=44 eps=1e-05 m=2"),
    "roof_fma": ("roof_fma mops=1",),
    "roof_read": ("roof_read mb=1",),
    "rope": (
        "rope ctx=9 head_dim=12 heads=4 kv=f16 kv_heads=2 m=3 rope_dim=8 style=half",
        "rope ctx=9 head_dim=12 heads=4 kv=f32 kv_heads=2 m=3 rope_dim=12 style=interleaved",
        "rope ctx=9 eps=1e-06 head_dim=12 heads=4 kv=f16 kv_heads=2 m=3 norm=yes rope_dim=8"
        " style=half",
        "rope ctx=9 eps=1e-06 head_dim=16 heads=3 kv=f32 kv_heads=1 m=2 norm=yes rope_dim=16"
        " style=interleaved",
    ),
    "softmax": ("softmax m=2 n=67", "softmax m=2 n=44"),
    "to_image": ("to_image k=67 m=3", "to_image k=72 m=5"),
    "transpose": (
        "transpose a=2 b=3 c=8 d=20 dtype=f32 perm=acdb",
        "transpose a=3 b=2 c=7 d=20 dtype=f16 perm=cbad",
        "transpose a=3 b=5 c=7 d=11 dtype=f16 perm=dbca",
    ),
}


def is_for(spec: KernelSpec, limits: DeviceLimits) -> bool:
    """Whether the device has what some variant needs: what makes images is for no other."""
    return any(variant.requires <= limits.features for variant in spec.variants)


def sample(
    spec: KernelSpec, workload: Workload, limits: DeviceLimits, rng: np.random.Generator, more: int
) -> list[Config]:
    """The safe configuration, both corners of each variant's space, and ``more`` random ones."""
    feasible = spec.feasible(workload, limits)
    chosen = [spec.safe(workload, limits)]
    for variant in spec.variants:
        of_variant = [c for c in feasible if c.variant == variant.name]
        if of_variant:
            chosen += [of_variant[0], of_variant[-1]]
            chosen += [of_variant[i] for i in rng.integers(0, len(of_variant), more)]
    return list(dict.fromkeys(chosen))


def any_of(
    spec: KernelSpec, workload: Workload, limits: DeviceLimits, rng: np.random.Generator
) -> Config:
    """A random feasible configuration; now and then a corner or the safe one."""
    candidates = sample(spec, workload, limits, rng, 3)
    return candidates[rng.integers(len(candidates))]


def small_tiles(
    spec: KernelSpec, workload: Workload, limits: DeviceLimits, rng: np.random.Generator
) -> list[Config]:
    """What only a GPU is offered, in tiles that a simulator can afford: a corner and a pick."""
    on_gpu = replace(limits, type="gpu") if isinstance(limits, Limits) else limits
    here = set(spec.feasible(workload, limits))
    more = [
        config
        for config in spec.feasible(workload, on_gpu)
        if config not in here and spec.local_memory(workload, config) <= 8 << 10
    ]
    return [more[0], more[rng.integers(len(more))]] if more else []


def seeds(few: int, many: int) -> list[object]:
    """Seeds of a test: ``few`` by default, the others up to ``many`` among the long tests."""
    return [*range(few), *(pytest.param(n, marks=pytest.mark.long) for n in range(few, many))]
