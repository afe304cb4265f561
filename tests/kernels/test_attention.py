"""Attention of one and of several tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from clk_cases import any_of
from clk_run import Runner, relative_error
from clk_shapes import random_workload
from clkiln.kernels import SPECS
from clkiln.kernels.types import Array, Config, Workload

DECODE, PREFILL = SPECS["attention_decode"], SPECS["attention_prefill"]


def inputs_at(workload: Workload, pos: int, m: int, rng: np.random.Generator) -> dict[str, Any]:
    """Inputs for another place in the context: what lies past it in the caches is NaN."""
    spec = SPECS[workload.op]
    inputs = spec.inputs(workload, rng)
    for name in ("k_cache", "v_cache"):
        cache = np.nan_to_num(inputs[name], nan=1.0)
        cache[pos + m :] = np.nan
        inputs[name] = cache
    inputs["state"] = np.array([pos, m, 0, 0], np.int32)
    return inputs


def by_definition(workload: Workload, inputs: dict[str, Any]) -> Array:
    """Attention in plain loops, float64."""
    heads, head_dim = workload.size("heads"), workload.size("head_dim")
    group = heads // workload.size("kv_heads")
    pos, m = inputs["state"][:2].tolist()
    qkv = np.atleast_2d(inputs["qkv"]).astype(np.float64)
    out = np.zeros((m, heads, head_dim))
    for i in range(m):
        for head in range(heads):
            q = qkv[i, head * head_dim : (head + 1) * head_dim]
            weights, total = [], np.zeros(head_dim)
            for position in range(pos + i + 1):
                k = inputs["k_cache"][position, head // group].astype(np.float64)
                weights.append(np.exp(q @ k / np.sqrt(head_dim)))
                total += weights[-1] * inputs["v_cache"][position, head // group]
            out[i, head] = total / sum(weights)
    return out.reshape(m, -1)


@pytest.mark.parametrize("op", ["attention_decode", "attention_prefill"])
@pytest.mark.parametrize(
    "seed", [*range(5), *(pytest.param(seed, marks=pytest.mark.long) for seed in range(5, 10))]
)
def test_random_shapes_and_positions(runner: Runner, op: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    spec, workload = SPECS[op], random_workload(op, rng)
    m = workload.size("m") if op == "attention_prefill" else 1
    pos = int(rng.integers(0, workload.size("ctx") - m + 1))
    config = any_of(spec, workload, runner.limits, rng)
    runner.check(spec, workload, config, inputs_at(workload, pos, m, rng))


@pytest.mark.parametrize("op", ["attention_decode", "attention_prefill"])
def test_the_reference_is_attention(op: str) -> None:
    workload = Workload.of(op, heads=6, kv_heads=2, head_dim=4, kv="f16", ctx=11)
    m = 1
    if op == "attention_prefill":
        m, workload = 5, workload.replace(m=5)
    inputs = inputs_at(workload, 4, m, np.random.default_rng(0))
    out = SPECS[op].reference(workload, inputs)["out"]
    assert np.allclose(out.reshape(m, -1), by_definition(workload, inputs))


DECODE_CONFIGS = [
    Config.of("buffer", LX=1, V=8, T=8, G=3),
    Config.of("buffer", LX=16, V=4, T=1, G=1),
    Config.of("buffer", LX=4, V=2, T=4, G=3),
    Config.of("image", LX=4, V=4, T=4, G=3),
]
PREFILL_CONFIGS = [
    Config.of("buffer", LX=1, V=16, T=8, UD=1),
    Config.of("buffer", LX=16, V=1, T=4, UD=16),
    Config.of("image", LX=8, V=2, T=4, UD=16),
]


@pytest.mark.parametrize("config", DECODE_CONFIGS, ids=str)
def test_one_decode_program_serves_every_position(runner: Runner, config: Config) -> None:
    """Around every edge of the steps, with one build for all contexts."""
    rng = np.random.default_rng(3)
    bucket = Workload.of("attention_decode", heads=6, kv_heads=2, head_dim=16, kv="f16", ctx=100)
    digest = DECODE.source(bucket, config).digest
    for pos in (0, 1, 2, 3, 6, 7, 8, 14, 15, 16, 17, 31, 63, 64, 98, 99):
        workload = bucket.replace(ctx=int(rng.integers(pos + 1, 101)))
        assert DECODE.source(workload, config).digest == digest
        runner.check(DECODE, workload, config, inputs_at(workload, pos, 1, rng))


@pytest.mark.parametrize("config", PREFILL_CONFIGS, ids=str)
def test_one_prefill_program_serves_every_size(runner: Runner, config: Config) -> None:
    rng = np.random.default_rng(4)
    bucket = Workload.of(
        "attention_prefill", heads=6, kv_heads=2, head_dim=16, kv="f16", ctx=100, m=64
    )
    digest = PREFILL.source(bucket, config).digest
    for pos, m in ((0, 1), (0, 2), (1, 1), (5, 3), (0, 5), (0, 16), (7, 17), (36, 64), (99, 1)):
        workload = bucket.replace(m=m)
        assert PREFILL.source(workload, config).digest == digest
        runner.check(PREFILL, workload, config, inputs_at(workload, pos, m, rng))


@pytest.mark.parametrize("config", PREFILL_CONFIGS, ids=str)
def test_fewer_tokens_than_launched(runner: Runner, config: Config) -> None:
    """With the bucket's geometry and fewer tokens in the state, the other rows stay unwritten."""
    workload = Workload.of(
        "attention_prefill", heads=6, kv_heads=2, head_dim=16, kv="f32", ctx=50, m=40
    )
    inputs = inputs_at(workload, 6, 9, np.random.default_rng(5))
    got, _ = runner.run(PREFILL, workload, config, inputs)
    want = PREFILL.reference(workload, inputs)["out"]
    assert relative_error(got["out"][:9], want) < PREFILL.tolerance(workload)
    assert np.isnan(got["out"][9:]).all()


@pytest.mark.parametrize("config", DECODE_CONFIGS, ids=str)
def test_scores_far_apart(runner: Runner, config: Config) -> None:
    """Scores of hundreds, whose plain exponentials overflow or vanish; the largest in any place."""
    rng = np.random.default_rng(6)
    workload = Workload.of("attention_decode", heads=6, kv_heads=2, head_dim=16, kv="f32", ctx=70)
    for peak in (0, 35, 69):
        inputs = inputs_at(workload, 69, 1, rng)
        inputs["k_cache"] *= 30
        inputs["k_cache"][peak] *= 3
        runner.check(DECODE, workload, config, inputs)


def test_decode_is_the_last_row_of_prefill(runner: Runner) -> None:
    rng = np.random.default_rng(7)
    many = Workload.of(
        "attention_prefill", heads=6, kv_heads=2, head_dim=48, kv="f16", ctx=33, m=33
    )
    one = Workload.of("attention_decode", heads=6, kv_heads=2, head_dim=48, kv="f16", ctx=33)
    inputs = inputs_at(many, 0, 33, rng)
    last = inputs | {"qkv": inputs["qkv"][-1], "state": np.array([32, 1, 0, 0], np.int32)}
    prefill, _ = runner.run(PREFILL, many, PREFILL.safe(many, runner.limits), inputs)
    decode, _ = runner.run(DECODE, one, DECODE.safe(one, runner.limits), last)
    assert relative_error(prefill["out"][-1], decode["out"].astype(np.float64)) < 1e-5
