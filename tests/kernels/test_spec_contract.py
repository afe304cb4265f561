"""What every spec promises, held against devices that are not there."""

from __future__ import annotations

import numpy as np
import pytest
from clk_cases import TINY
from clk_run import Limits
from clkiln.kernels import SPECS
from clkiln.kernels.types import Config, Workload

LEAST = Limits()
DEVICES = {
    "least": LEAST,
    "least cpu": Limits("cpu"),
    "one item": Limits("gpu", 8, 48 << 10),
    "odd": Limits("gpu", 3, 16 << 10, 48, (48, 16, 16)),
    "simulator": Limits("cpu", 4, 32 << 10, 1024, (1024, 1024, 1024), features=frozenset({"images"})),
    "cpu": Limits("cpu", 64, 2 << 20, 4096, (4096,) * 3, 8 << 30, 16384, 16384),
    "gpu": Limits("gpu", 132, 48 << 10, 1024, (1024, 1024, 64), 8 << 30, 32768, 32768),
}
MODEL = {"heads": 9, "kv_heads": 3, "head_dim": 64, "kv": "f16", "ctx": 2048}
REAL = (
    Workload.of("add", d=576, m=256),
    Workload.of("argmax", n=49152),
    Workload.of("attention_decode", **MODEL),
    Workload.of("attention_decode", **{**MODEL, "heads": 14, "kv_heads": 2, "head_dim": 128}),
    Workload.of("attention_prefill", m=256, **MODEL),
    Workload.of("attention_prefill", m=512, **{**MODEL, "head_dim": 256, "kv": "f32"}),
    Workload.of("rmsnorm", d=576, m=1, eps="1e-05"),
    Workload.of("roof_fma", mops=1024),
    Workload.of("roof_read", mb=64),
    Workload.of("rope", m=256, rope_dim=64, style="half", **MODEL),
    Workload.of("softmax", n=49152, m=1),
)
WORKLOADS = [*REAL, *(Workload.parse(text) for texts in TINY.values() for text in texts)]


@pytest.mark.parametrize("device", DEVICES)
def test_the_safe_configuration_is_feasible(device: str) -> None:
    for workload in WORKLOADS:
        spec = SPECS[workload.op]
        config = spec.safe(workload, DEVICES[device])
        assert spec.check(workload, config, DEVICES[device]) is None, f"{workload} {config}"


@pytest.mark.parametrize("workload", REAL, ids=str)
def test_there_is_something_to_choose(workload: Workload) -> None:
    spec = SPECS[workload.op]
    for name in ("cpu", "gpu"):
        assert 10 <= len(spec.feasible(workload, DEVICES[name])) <= 500, name


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


@pytest.mark.parametrize("workload", WORKLOADS, ids=str)
def test_inputs_fit_the_arguments(workload: Workload) -> None:
    if workload in REAL and workload.op.startswith(("attention", "roof")):
        pytest.skip("large; the tiny one says it")
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


def test_local_memory_is_what_the_source_declares() -> None:
    """Per operation, the formula against the declarations, counted by hand."""
    cases = (
        (REAL[0], Config.of("buffer", LX=64, V=4, U=1), 0),
        (REAL[1], Config.of("buffer", LX=64, V=4), 64 * (4 + 4)),
        (REAL[2], Config.of("buffer", LX=64, V=4, T=1, G=1), 4 * 64 + 4 * 32 * 64),
        (REAL[2], Config.of("buffer", LX=1, V=4, T=1, G=1), 4),
        (REAL[4], Config.of("buffer", LX=64, V=1, T=8, UD=1), 2 * 4 * 8 * 64),
        (REAL[4], Config.of("buffer", LX=1, V=16, T=8, UD=1), 0),
        (REAL[6], Config.of("buffer", LX=64, V=4), 4 * 64),
    )
    for workload, config, size in cases:
        assert SPECS[workload.op].local_memory(workload, config) == size
