"""GEMM through tiles in local memory, as a GPU has it: odd shapes, every way to code a weight.

CPU devices run it here, under the limits of a GPU, because to a tuner on a CPU it is no choice.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from clk_pocl import find_pocl
from clk_run import Limits
from clkiln.harness.operation import Operation, label_of
from clkiln.kernels import SPECS
from clkiln.kernels.gemm.spec import TILED
from clkiln.kernels.types import Workload
from clkiln.kernels.weights import DTYPES
from clkiln.runtime.context import Context
from clkiln.runtime.program import ProgramLoader

SPEC = SPECS["gemm"]
GPU = Limits("gpu", 132, 48 << 10, 1024, (1024, 1024, 64), 8 << 30, 32768, 32768)


@pytest.fixture(scope="module", params=["pip", "debian"])
def loader(request: pytest.FixtureRequest) -> Iterator[ProgramLoader]:
    with Context(find_pocl(request.param)) as context:
        yield ProgramLoader(context)


@pytest.mark.parametrize("seed", range(8))
def test_any_shape(loader: ProgramLoader, seed: int) -> None:
    """Verified in the bucket and at a number of tokens below it, outputs guarded."""
    rng = np.random.default_rng([seed, "debian" in loader.context.info.platform_version])
    dtype = str(rng.choice(DTYPES))
    step = 256 if dtype.endswith("_k") else 1 if dtype in ("f32", "f16", "bf16") else 32
    workload = Workload.of(
        "gemm",
        bias=str(rng.choice(["yes", "no"])),
        fuse=str(rng.choice(["none", "add", "swiglu"])),
        k=step * int(rng.integers(1, 200 // step + 2)),
        m=int(rng.integers(2, 70)),
        n=int(rng.integers(1, 150)),
        w=dtype,
    )
    tiled = [c for c in SPEC.feasible(workload, GPU) if c.variant == TILED]
    config = tiled[rng.integers(len(tiled))]
    operation = Operation(loader.context, workload, seed=seed)
    label = label_of(workload, config)
    verdict = operation.verify(loader.load(SPEC.source(workload, config), label), config)
    assert verdict.ok, f"{label}: {verdict.message}"


def test_it_is_what_a_gpu_runs_untuned_and_a_cpu_never() -> None:
    workload = Workload.of("gemm", bias="no", fuse="swiglu", k=576, m=256, n=1536, w="q4_1")
    assert SPEC.safe(workload, GPU).variant == TILED
    assert {c.variant for c in SPEC.starts(workload, GPU)} == {TILED}
    assert TILED not in {c.variant for c in SPEC.feasible(workload, replace(GPU, type="cpu"))}
    # Where it does not fit, what needs no local memory does.
    small = replace(GPU, local_memory=8 << 10)
    assert SPEC.safe(workload, small).variant == "buffer"
