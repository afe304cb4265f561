"""Layer norm and GELU: random shapes, means far from zero, and tails element by element."""

from __future__ import annotations

import math

import numpy as np
import pytest

from clk_cases import any_of, seeds
from clk_run import Runner
from clk_shapes import random_workload
from clkiln.kernels import SPECS
from clkiln.kernels.types import Config, Workload


@pytest.mark.parametrize("op", ["gelu", "layernorm"])
@pytest.mark.parametrize("seed", seeds(3, 20))
def test_random_shapes(any_runner: Runner, op: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    spec, workload = SPECS[op], random_workload(op, rng)
    config = any_of(spec, workload, any_runner.limits, rng)
    any_runner.check(spec, workload, config, spec.inputs(workload, rng))


@pytest.mark.parametrize("mean", [0.0, 1e3, -1e5, 1e6])
@pytest.mark.parametrize("spread", [1.0, 1e-3])
def test_layernorm_with_a_mean_far_from_zero(
    any_runner: Runner, mean: float, spread: float
) -> None:
    """Against float64 on the same float32 numbers. The mean of squares less the square of the mean
    would have no digit right from a mean of a few thousand spreads on."""
    rng = np.random.default_rng(5)
    spec, workload = SPECS["layernorm"], Workload.parse("layernorm bias=yes d=500 eps=1e-12 m=3")
    inputs = spec.inputs(workload, rng)
    inputs["x"] = rng.normal(mean, spread * max(1, abs(mean) / 1e3), (3, 500)).astype(np.float32)
    assert inputs["x"].std(axis=1).min() > 0
    for config in (Config.of("buffer", LX=16, V=4, HOLD=1), Config.of("buffer", LX=1, V=8, HOLD=0)):
        any_runner.check(spec, workload, config, inputs)


def test_layernorm_of_equal_numbers_is_the_bias(any_runner: Runner) -> None:
    rng = np.random.default_rng(6)
    spec, workload = SPECS["layernorm"], Workload.parse("layernorm bias=yes d=67 eps=1e-05 m=2")
    inputs = spec.inputs(workload, rng) | {"x": np.full((2, 67), 0.1, np.float32)}
    for config in (Config.of("buffer", LX=16, V=4, HOLD=1), Config.of("buffer", LX=1, V=8, HOLD=0)):
        got, _ = any_runner.run(spec, workload, config, inputs)
        assert np.allclose(got["y"], inputs["b"], atol=1e-5, rtol=0)


def exact_gelu(x: np.ndarray) -> np.ndarray:
    """``x/2 erfc(-x / sqrt 2)`` in float64, which loses nothing in the tail."""
    return np.array([0.5 * v * math.erfc(-v / math.sqrt(2)) for v in x.tolist()])


def gelu_of(runner: Runner, form: str, x: np.ndarray) -> np.ndarray:
    spec, workload = SPECS["gelu"], Workload.of("gelu", bias="no", d=x.size, form=form, m=1)
    config = Config.of("buffer", LX=1, V=4, U=4)
    got, _ = runner.run(spec, workload, config, {"x": x.reshape(1, -1)})
    return got["y"][0].astype(np.float64)


def test_exact_gelu_element_by_element(any_runner: Runner) -> None:
    """A relative error of at most ``(4 + x^2) 2^-23``, to -10: rounding ``x / sqrt 2`` alone costs
    ``x^2`` times its own there. Seen: half of it. By ``1 + erf`` no digit is right below -5.5."""
    x = np.linspace(-10, 10, 4001, dtype=np.float32)
    want = exact_gelu(x.astype(np.float64))
    error = np.abs(gelu_of(any_runner, "erf", x) - want)
    bound = (4 + x.astype(np.float64) ** 2) * 2.0**-23 * np.abs(want)
    assert (error <= bound).all(), f"worst at {x[np.argmax(error / (bound + 1e-300))]}"


def test_gelu_by_tanh_element_by_element(any_runner: Runner) -> None:
    x = np.linspace(-10, 10, 4001, dtype=np.float32)
    x64 = x.astype(np.float64)
    u = math.sqrt(2 / math.pi) * (x64 + 0.044715 * x64**3)
    want = x64 / (1 + np.exp(-2 * u))
    error = np.abs(gelu_of(any_runner, "tanh", x) - want)
    bound = (4 + 4 * np.abs(u)) * 2.0**-23 * np.abs(want) + 1e-37
    assert (error <= bound).all(), f"worst at {x[np.argmax(error / (bound + 1e-300))]}"


@pytest.mark.parametrize("form", ["erf", "tanh"])
def test_gelu_far_out(any_runner: Runner, form: str) -> None:
    """Zero or ``x`` itself, and NaN stays NaN: no form overflows on the way."""
    far = np.array([-3e38, -1e20, -1e5, -50, 50, 1e5, 1e20, 3e38, 0, -0.0, np.nan, 1], np.float32)
    got = gelu_of(any_runner, form, far)
    assert (got[:4] == 0).all() and (got[8:10] == 0).all() and np.isnan(got[10])
    assert np.array_equal(got[4:8], far[4:8].astype(np.float64))
