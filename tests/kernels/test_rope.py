"""Rotary embedding and the write into the KV cache."""

from __future__ import annotations

import numpy as np
import pytest

from clk_cases import any_of
from clk_run import Runner
from clk_shapes import random_workload
from clkiln.kernels import SPECS
from clkiln.kernels.types import Array, Config, Workload

SPEC = SPECS["rope"]


def random_state(workload: Workload, m: int, rng: np.random.Generator) -> Array:
    """Any place in the context at which ``m`` tokens fit."""
    return np.array([rng.integers(0, workload.size("ctx") - m + 1), m, 0, 0], np.int32)


@pytest.mark.parametrize("seed", range(12))
def test_random_shapes_and_positions(runner: Runner, seed: int) -> None:
    """Rows of the caches outside the step keep their values: the reference has them, too."""
    rng = np.random.default_rng(seed)
    workload = random_workload("rope", rng)
    inputs = SPEC.inputs(workload, rng)
    inputs["state"] = random_state(workload, workload.size("m"), rng)
    runner.check(SPEC, workload, any_of(SPEC, workload, runner.limits, rng), inputs)


@pytest.mark.parametrize("seed", range(4))
def test_fewer_tokens_than_launched(runner: Runner, seed: int) -> None:
    """With the bucket's geometry and fewer tokens in the state, the other rows stay as they are."""
    rng = np.random.default_rng(seed)
    workload = random_workload("rope", rng).replace(ctx=40, m=7)
    inputs = SPEC.inputs(workload, rng)
    inputs["state"] = random_state(workload, 3, rng)
    runner.check(SPEC, workload, any_of(SPEC, workload, runner.limits, rng), inputs)


@pytest.mark.parametrize("style", ["half", "interleaved"])
def test_the_reference_turns_pairs(style: str) -> None:
    """Against complex multiplication, written from the definition."""
    workload = Workload.of(
        "rope", heads=1, kv_heads=1, head_dim=8, rope_dim=6, style=style, kv="f32", ctx=5, m=1
    )
    inputs = SPEC.inputs(workload, np.random.default_rng(0))
    inputs["state"] = np.array([3, 1, 0, 0], np.int32)
    out = SPEC.reference(workload, inputs)
    pairs = [(0, 3), (1, 4), (2, 5)] if style == "half" else [(0, 1), (2, 3), (4, 5)]
    for values, turned in (
        (inputs["qkv"][0, :8], out["qkv"][0, :8]),
        (inputs["qkv"][0, 8:16], out["k_cache"][3, 0]),
    ):
        for i, (a, b) in enumerate(pairs):
            angle = 3 * 10000.0 ** (-i / 3)
            want = complex(values[a], values[b]) * np.exp(1j * angle)
            assert np.isclose(complex(turned[a], turned[b]), want, atol=1e-6)
        assert np.array_equal(turned[6:], values[6:])
    assert np.array_equal(out["v_cache"][3, 0], inputs["qkv"][0, 16:])


@pytest.mark.parametrize("style", ["half", "interleaved"])
def test_a_norm_before_the_rotation(style: str) -> None:
    """As if q and k had come normalised, head by head; v is left alone."""
    plain = Workload.of(
        "rope", heads=3, kv_heads=2, head_dim=8, rope_dim=6, style=style, kv="f32", ctx=5, m=2
    )
    workload = plain.replace(norm="yes", eps="0.25")
    inputs = SPEC.inputs(workload, np.random.default_rng(0))
    out = SPEC.reference(workload, inputs)
    by_hand = inputs["qkv"].astype(np.float64).reshape(2, 7, 8)
    for token in by_hand:
        for slot, head in enumerate(token[:5]):
            length = np.sqrt(sum(value**2 for value in head) / 8 + 0.25)
            head *= inputs["q_norm" if slot < 3 else "k_norm"] / length
    want = SPEC.reference(plain, inputs | {"qkv": by_hand.reshape(2, 56)})
    assert np.allclose(out["qkv"][:, :24], want["qkv"][:, :24])
    assert np.array_equal(out["qkv"][:, 24:], inputs["qkv"][:, 24:]), "only q turns in place"
    assert np.allclose(out["k_cache"], want["k_cache"])
    assert np.array_equal(out["v_cache"], want["v_cache"])


def test_turning_keeps_lengths_and_relative_angles() -> None:
    """Scores of turned queries and keys depend on the distance of their positions alone."""
    workload = Workload.of(
        "rope", heads=1, kv_heads=1, head_dim=16, rope_dim=16, style="half", kv="f32", ctx=64, m=1
    )
    inputs = SPEC.inputs(workload, np.random.default_rng(0))
    inputs["qkv"] = np.repeat(inputs["qkv"], 64, axis=0)
    inputs["state"] = np.array([0, 64, 0, 0], np.int32)
    out = SPEC.reference(workload.replace(m=64), inputs)
    q, k = out["qkv"][:, :16], out["k_cache"][:, 0]
    assert np.allclose(np.linalg.norm(q, axis=1), np.linalg.norm(inputs["qkv"][0, :16]))
    scores = q @ k.T
    for distance in (0, 1, 7, 40):
        assert np.ptp(np.diagonal(scores, -distance)) < 1e-5


def test_float16_rounds_to_nearest(runner: Runner) -> None:
    """Values between two float16 numbers go to the nearer one, ties to the even one."""
    workload = Workload.of(
        "rope", heads=1, kv_heads=1, head_dim=8, rope_dim=2, style="half", kv="f16", ctx=1, m=1
    )
    inputs = SPEC.inputs(workload, np.random.default_rng(0))
    step = 2.0**-10
    v = [1 + 0.4 * step, 1 + 0.5 * step, 1 + 0.6 * step, 1 + 1.5 * step, -1 - 0.6 * step]
    v += [6e-8, 1e-5, 65000]
    inputs["qkv"][0, 16:] = v
    for config in (Config.of("buffer", LX=1, V=1, S=1), Config.of("buffer", LX=4, V=1, S=3)):
        packed = SPEC.pack(workload, config, inputs)
        got, _ = runner.run(SPEC, workload, config, packed)
        assert np.array_equal(got["v_cache"][0, 0], inputs["qkv"][0, 16:].astype(np.float16))
