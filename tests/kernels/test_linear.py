"""Linear layers and the embedding on real devices: odd shapes, every dtype, what is fused.

Random feasible configurations and the corners of the space, buffers and images, through the same
harness as the tuner's: against NumPy, at a second smaller size, with guarded outputs.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from clk_cases import DTYPES_OF_MIXTURES, sample
from clk_pocl import find_pocl
from clkiln.harness.operation import Operation, label_of
from clkiln.kernels import SPECS
from clkiln.kernels.coding import coding_of
from clkiln.kernels.types import Config, Workload
from clkiln.kernels.weights import DTYPES
from clkiln.runtime.context import Context
from clkiln.runtime.program import ProgramLoader

FUSIONS = ("none", "add", "swiglu")
CODINGS = (*DTYPES, *DTYPES_OF_MIXTURES)


@pytest.fixture(scope="module", params=["pip", "debian"])
def loader(request: pytest.FixtureRequest) -> Iterator[ProgramLoader]:
    with Context(find_pocl(request.param)) as context:
        yield ProgramLoader(context)


def random_workload(op: str, dtype: str, fuse: str, rng: np.random.Generator) -> Workload:
    """Sizes that divide nothing, one row and one column among them."""
    coding = coding_of(dtype)
    step = coding.columns if coding else 1
    n, k = int(rng.integers(1, 150)), step * int(rng.integers(1, max(200 // step, 2) + 1))
    if op == "embedding":
        return Workload.of(op, k=k, m=int(rng.integers(1, 9)), n=n, w=dtype)
    bias = "yes" if rng.integers(2) else "no"
    workload = Workload.of(op, bias=bias, fuse=fuse, k=k, n=n, w=dtype)
    return workload.replace(m=int(rng.integers(2, 40))) if op == "gemm" else workload


def verify(loader: ProgramLoader, workload: Workload, config: Config, seed: int) -> None:
    label = label_of(workload, config)
    operation = Operation(loader.context, workload, seed=seed)
    program = loader.load(operation.spec.source(workload, config), label)
    verdict = operation.verify(program, config)
    assert verdict.ok, f"{label}: {verdict.message}"
    assert loader.context.memory.used == 0


def on_debians(loader: ProgramLoader) -> bool:
    return "debian" in loader.context.info.platform_version


def pick(workload: Workload, loader: ProgramLoader, kind: str, seed: int) -> Config:
    """A random feasible configuration of a kind; by turns a corner of its space."""
    rng = np.random.default_rng(seed)
    spec = SPECS[workload.op]
    candidates = sample(spec, workload, loader.context.info, rng, 4)
    of_kind = [c for c in candidates if spec.variant(c.variant).kind == kind]
    return of_kind[seed % len(of_kind)]


def some_and_rest() -> Iterator[object]:
    """Each operation and coding with one fusion, by turns; those with the other two are long."""
    for i, dtype in enumerate(CODINGS):
        for op in ("gemv", "gemm"):
            for j, fuse in enumerate(FUSIONS):
                usual = (i + (op == "gemm")) % len(FUSIONS) == j
                marks = () if usual else (pytest.mark.long,)
                yield pytest.param(op, dtype, fuse, marks=marks, id=f"{op}-{dtype}-{fuse}")


@pytest.mark.parametrize(("op", "dtype", "fuse"), [*some_and_rest()])
def test_linear(loader: ProgramLoader, op: str, dtype: str, fuse: str) -> None:
    """What is a buffer on one of the two devices is an image on the other."""
    seed = 6 * CODINGS.index(dtype) + 2 * FUSIONS.index(fuse) + (op == "gemm")
    odd = sum((CODINGS.index(dtype), FUSIONS.index(fuse), op == "gemm", on_debians(loader))) % 2
    workload = random_workload(op, dtype, fuse, np.random.default_rng(seed))
    verify(loader, workload, pick(workload, loader, "image" if odd else "buffer", seed), seed)


@pytest.mark.parametrize("dtype", CODINGS)
def test_embedding(loader: ProgramLoader, dtype: str) -> None:
    seed = CODINGS.index(dtype)
    workload = random_workload("embedding", dtype, "none", np.random.default_rng(seed))
    kind = "image" if (seed + on_debians(loader)) % 2 else "buffer"
    verify(loader, workload, pick(workload, loader, kind, seed), seed)


@pytest.mark.parametrize("op", ["gemv", "gemm"])
@pytest.mark.parametrize("dtype", ["f16", "q4_1"])
def test_one_row_and_one_block(loader: ProgramLoader, op: str, dtype: str) -> None:
    """The smallest weight, in the configuration with the largest tiles."""
    workload = Workload.of(op, bias="yes", fuse="none", k=32, n=1, w=dtype)
    if op == "gemm":
        workload = workload.replace(m=1)
    verify(loader, workload, SPECS[op].feasible(workload, loader.context.info, "buffer")[-1], 0)


def test_gemm_serves_every_number_of_tokens(loader: ProgramLoader) -> None:
    """One program, built for the bucket, at each size below it."""
    bucket = Workload.of("gemm", bias="yes", fuse="add", k=64, m=13, n=35, w="q8_0")
    spec = SPECS["gemm"]
    config = Config.of("buffer", R=16, S=16, TM=6, TN=2, LX=2, LY=2)
    assert spec.check(bucket, config, loader.context.info) is None
    for m in range(1, 14):
        workload = bucket.replace(m=m)
        assert spec.source(workload, config) == spec.source(bucket, config)
        verify(loader, workload, config, m)


def test_embedding_of_unknown_tokens_is_zero(loader: ProgramLoader) -> None:
    """Ids outside the table read nothing outside it."""
    workload = Workload.of("embedding", k=64, m=5, n=7, w="q4_1")
    operation = Operation(loader.context, workload)
    tokens = np.array([0, -1, 6, 7, 2**31 - 1], np.int32)
    operation.inputs["tokens"] = tokens
    config = operation.spec.safe(workload, loader.context.info)
    program = loader.load(operation.spec.source(workload, config), "embedding")
    bound = operation.bind(program, config)
    bound.launch.enqueue()
    y = bound.tensors["y"].read(5 * 64).reshape(5, 64)
    bound.release()
    table = operation.inputs["w"].dequantise()
    np.testing.assert_allclose(y[[0, 2]], table[[0, 6]], rtol=1e-6)
    assert not y[[1, 3, 4]].any()
