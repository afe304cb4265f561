"""What a GEMV takes in on its way: the norm in front of it, the heads behind it; odd shapes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from clk_cases import any_of
from clk_pocl import find_pocl
from clkiln.harness.operation import Operation, label_of
from clkiln.kernels import SPECS
from clkiln.kernels.coding import coding_of
from clkiln.kernels.types import Config, Workload
from clkiln.runtime.context import Context
from clkiln.runtime.program import ProgramLoader

SPEC = SPECS["gemv"]


@pytest.fixture(scope="module", params=["pip", "debian"])
def loader(request: pytest.FixtureRequest) -> Iterator[ProgramLoader]:
    with Context(find_pocl(request.param)) as context:
        yield ProgramLoader(context)


def fused(rng: np.random.Generator) -> Workload:
    """A random workload with a norm, heads, or both; sizes that divide nothing evenly."""
    dtype = str(rng.choice(["f32", "f16", "q8_0", "q4_0", "q4_1", "q6_k", "mix5mg32f"]))
    coding = coding_of(dtype)
    step = coding.columns if coding else 1
    k = step * int(rng.integers(1, max(200 // step, 2) + 1))
    items: dict[str, int | str] = {"w": dtype, "k": k, "bias": str(rng.choice(["yes", "no"]))}
    with_heads = bool(rng.integers(2))
    if with_heads:
        kv_heads, head_dim = int(rng.integers(1, 4)), 2 * int(rng.integers(1, 20))
        heads = kv_heads * int(rng.integers(1, 5))
        items |= {"fuse": "qkv", "heads": heads, "kv_heads": kv_heads, "head_dim": head_dim}
        items |= {"n": (heads + 2 * kv_heads) * head_dim, "kv": str(rng.choice(["f16", "f32"]))}
        items["rope_dim"] = 2 * int(rng.integers(1, head_dim // 2 + 1))
    else:
        items |= {"n": int(rng.integers(1, 150)), "fuse": str(rng.choice(["none", "swiglu"]))}
    if not with_heads or rng.integers(2):
        items |= {"norm": "yes", "eps": "1e-05"}
    return Workload.of("gemv", **items)


@pytest.mark.parametrize("seed", range(10))
def test_any_shape(loader: ProgramLoader, seed: int) -> None:
    rng = np.random.default_rng([seed, "debian" in loader.context.info.platform_version])
    workload = fused(rng)
    config = any_of(SPEC, workload, loader.context.info, rng)
    operation = Operation(loader.context, workload, seed=seed)
    label = label_of(workload, config)
    program = loader.load(SPEC.source(workload, config), label)
    verdict = operation.verify(program, config)
    assert verdict.ok, f"{label}: {verdict.message}"


def test_a_normed_product_is_the_product_of_the_norm() -> None:
    """The reference, against the two operations one after the other."""
    rng = np.random.default_rng(3)
    workload = Workload.of(
        "gemv", bias="no", eps="1e-05", fuse="none", k=96, n=33, norm="yes", w="q4_0"
    )
    inputs = SPEC.inputs(workload, rng)
    norm = Workload.of("rmsnorm", d=96, eps="1e-05", m=1)
    given = {"x": inputs["x"], "w": inputs["norm"]}
    x = SPECS["rmsnorm"].reference(norm, given)["y"]
    plain = Workload.of("gemv", bias="no", fuse="none", k=96, n=33, w="q4_0")
    expected = SPEC.reference(plain, {**inputs, "x": x})["y"]
    np.testing.assert_allclose(SPEC.reference(workload, inputs)["y"], expected, rtol=1e-12)


def test_heads_turn_as_the_rotary_embedding_turns_them() -> None:
    """The reference, against a plain product and the operation rope behind it."""
    rng = np.random.default_rng(4)
    sizes = {"heads": 4, "kv_heads": 2, "head_dim": 10, "rope_dim": 6}
    workload = Workload.of("gemv", bias="yes", fuse="qkv", k=64, kv="f32", n=80, w="f32", **sizes)
    inputs = SPEC.inputs(workload, rng)
    plain = Workload.of("gemv", bias="yes", fuse="none", k=64, n=80, w="f32")
    qkv = SPEC.reference(plain, inputs)["y"]
    rope = Workload.of("rope", ctx=8, m=1, kv="f32", style="interleaved", **sizes)
    turned = SPECS["rope"].reference(rope, {**inputs, "qkv": qkv})
    found = SPEC.reference(workload, inputs)
    np.testing.assert_allclose(found["y"][0], turned["qkv"][0, :40], rtol=1e-12)
    for name in ("k_cache", "v_cache"):
        np.testing.assert_allclose(found[name], turned[name], rtol=1e-12)


def test_what_is_staged_counts_as_local_memory() -> None:
    config = Config.of("buffer", R=4, S=16, LX=2, KS=4, G=1, U=1)
    plain = Workload.of("gemv", bias="no", fuse="none", k=96, n=64, w="q4_0")
    normed = plain.replace(norm="yes", eps="1e-05")
    extra = SPEC.local_memory(normed, config) - SPEC.local_memory(plain, config)
    assert extra == 4 * (96 + 8)
